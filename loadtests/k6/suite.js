// What all scenarios share: the corpus, one request, the SLOs, the summary. Rates and lengths are in scenarios.json.
//
// Scaled by two variables: RATE and TIME, factors of the full scenario (1 and 1). Beside them TARGET (the gateway or
// what stands before it, on this machine), CORPUS (a file made by `penstock corpus`), P95_MS (the SLO, 5), and SUMMARY
// (a file for the figures).
import http from "k6/http";
import exec from "k6/execution";
import { SharedArray } from "k6/data";
import { Counter, Rate } from "k6/metrics";

const plans = JSON.parse(open("./scenarios.json"));
const target = __ENV.TARGET || "http://127.0.0.1:8080";
const p95 = positive("P95_MS", 5);
const rateScale = positive("RATE", 1);
const timeScale = positive("TIME", 1);
const LAPS = 100000;
// A virtual user is busy for as long as an answer takes: enough of them for 250 ms up to 1,000/s, for 125 ms up to 4,000/s,
// for 25 ms above. More would cost: each is a JavaScript runtime of its own, through which k6's collector goes.
const virtualUsers = (rate) =>
  Math.ceil(Math.max(20, Math.min(rate / 4, 250), Math.min(rate / 8, 500), rate / 40));

if (!/^http:\/\/(127\.\d+\.\d+\.\d+|localhost|\[::1\])(:\d+)?$/.test(target)) {
  throw new Error(`TARGET=${target}: a load stays on this machine: http://127.0.0.1:PORT`);
}

// In the order they are asked; one copy for all virtual users.
const asks = new SharedArray("asks", () => {
  const questions = [];
  const order = [];
  for (const line of open(__ENV.CORPUS || "./corpus.jsonl").split("\n")) {
    if (!line) continue;
    const one = JSON.parse(line);
    if (Array.isArray(one.draws)) order.push(...one.draws);
    else if (one.body) questions.push(one);
  }
  if (order.length === 0) throw new Error("CORPUS names no corpus: make one with `penstock corpus`");
  return order.map((number) => questions[number]);
});

const outcomes = {};
for (const name of ["HIT-L1", "HIT-L2", "COALESCED", "MISS", "BYPASS"]) {
  outcomes[name] = new Counter(`answers_${name.toLowerCase().replace("-", "_")}`);
}
const none = new Counter("answers_none"); // of no outcome: refused, or not the gateway's
const failed = new Rate("failed");
const hits = new Rate("cache_hits");
const streams = new Counter("streams");
const laps = {}; // by phase: where its laps begin, so that no two phases ask the same

function positive(name, usual) {
  const value = Number(__ENV[name] || usual);
  if (!(value > 0)) throw new Error(`${name}=${__ENV[name]} is not a number above 0`);
  return value;
}

export function scenario(name) {
  const plan = plans[name];
  const scenarios = {};
  const thresholds = {};
  let startMs = 0;
  plan.phases.forEach((phase, number) => {
    laps[phase.name] = Math.floor((number * LAPS) / plan.phases.length);
    const stages = [];
    for (let i = 0; i < (phase.repeat || 1); i++) {
      for (const stage of phase.stages) {
        stages.push({
          duration: `${Math.max(1, Math.round(stage.seconds * timeScale * 1000))}ms`,
          target: Math.round(stage.rate * rateScale),
        });
      }
    }
    const start = Math.max(1, Math.round(phase.start * rateScale));
    const vus = virtualUsers(Math.max(start, ...stages.map((s) => s.target)));
    scenarios[phase.name] = {
      exec: "ask",
      startTime: `${startMs}ms`,
      gracefulStop: "20s",
      timeUnit: "1s",
      preAllocatedVUs: vus,
      maxVUs: vus,
      ...(stages.length === 1 && stages[0].target === start
        ? { executor: "constant-arrival-rate", rate: start, duration: stages[0].duration }
        : { executor: "ramping-arrival-rate", startRate: start, stages }),
    };
    for (const stage of phase.stages) {
      startMs += Math.max(1, Math.round(stage.seconds * timeScale * 1000)) * (phase.repeat || 1);
    }
    const slo = (text) =>
      phase.until_failure ? [{ threshold: text, abortOnFail: true, delayAbortEval: "1s" }] : [text];
    thresholds[`http_req_duration{scenario:${phase.name}}`] = slo(`p(95)<${p95}`);
    thresholds[`failed{scenario:${phase.name}}`] = slo("rate<0.001");
    thresholds[`dropped_iterations{scenario:${phase.name}}`] = slo("count<1");
    if (!phase.until_failure) {
      thresholds[`cache_hits{scenario:${phase.name}}`] = [plan.cache ? "rate>=0.4" : "rate<=0"];
    }
  });
  return {
    scenarios,
    thresholds,
    discardResponseBodies: false,
    noConnectionReuse: false,
    summaryTrendStats: ["avg", "min", "med", "p(90)", "p(95)", "p(99)", "max", "count"],
    userAgent: "penstock-loadtest",
  };
}

export function ask() {
  const number = exec.scenario.iterationInTest;
  const one = asks[number % asks.length];
  const lap = (laps[exec.scenario.name] + Math.floor(number / asks.length)) % LAPS;
  const answer = http.post(
    `${target}/v1/chat/completions`,
    one.body.replace("@lap@", String(lap).padStart(5, "0")),
    { headers: { "content-type": "application/json" }, tags: { name: "ask" }, timeout: "60s" },
  );
  const outcome = answer.headers["X-Penstock-Cache"];
  const body = answer.body || "";
  // a stream that failed has no [DONE]: it ends with its dialect's error frame
  const good = answer.status === 200 && (one.stream ? body.endsWith("data: [DONE]\n\n") : body.endsWith("}"));
  failed.add(!good);
  hits.add(outcome === "HIT-L1" || outcome === "HIT-L2");
  (outcomes[outcome] || none).add(1);
  if (one.stream) streams.add(1);
}

export function handleSummary(data) {
  const lines = [`scale: rate x ${__ENV.RATE || 1}, time x ${__ENV.TIME || 1}`];
  for (const [name, metric] of Object.entries(data.metrics)) {
    for (const [text, judged] of Object.entries(metric.thresholds || {})) {
      const value = metric.values[text.split(/[<>]/)[0]];
      lines.push(`${judged.ok ? "ok  " : "MISS"} ${name}: ${text} (${value})`);
    }
  }
  const told = { stdout: lines.join("\n") + "\n" };
  if (__ENV.SUMMARY) told[__ENV.SUMMARY] = JSON.stringify(data);
  return told;
}
