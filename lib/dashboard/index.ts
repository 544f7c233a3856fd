export { Curve, type CurvePoints, type CurveRange } from "./curve";
export { Dashboard } from "./dashboard";
export { type EditorOptions, LabelEditor, type Outcome, type Predictor } from "./edits";
export { MetricsFile } from "./metrics-file";
export { RunList, type RunSummary, type RunVersions, RunView } from "./runs";
export { DashboardServer, type DashboardServerOptions } from "./server";
export { DashboardWorker, type DashboardWorkerOptions } from "./worker";
