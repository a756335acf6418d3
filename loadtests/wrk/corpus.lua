-- For wrk and wrk2: the corpus in its order, dealt out among threads. A lap's number has five digits, so that a request
-- is made once and only these change. Outcomes are not looked at here (that halves wrk's rate): the gateway counts them.
local threads = 0
function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

local before, after, at, lap = {}, {}, 0, 0
function init(args)
  local line, mine = 0, number
  wrk.method = "POST"
  wrk.headers["content-type"] = "application/json"
  for body in io.lines(os.getenv("BODIES")) do
    if line % 2 == mine % 2 then -- two threads: -t2
      local whole = wrk.format(nil, nil, nil, body)
      local from, to = whole:find("@lap@", 1, true)
      before[#before + 1] = whole:sub(1, from - 1)
      after[#after + 1] = whole:sub(to + 1)
    end
    line = line + 1
  end
end

function request()
  at = at + 1
  if at > #before then at, lap = 1, (lap + 1) % 100000 end
  return before[at] .. string.format("%05d", lap) .. after[at]
end

done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\n@@{"requests":%d,"seconds":%.3f,"failed":%d,"p50_ms":%.3f,"p95_ms":%.3f,"p99_ms":%.3f}\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.timeout + e.status,
    latency:percentile(50) / 1000, latency:percentile(95) / 1000, latency:percentile(99) / 1000))
end
