import { scenario } from "./suite.js";

export { ask, handleSummary } from "./suite.js";
export const options = scenario("spike");
