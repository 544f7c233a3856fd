export {
  type AuditedImage,
  type AuditOptions,
  auditLabels,
  confidentScore,
  type GivenBox,
  type LabelFinding,
  type LabelProblem,
  labelProblems,
} from "./audit-labels";
export { findingLines, findingTable, writeFindings } from "./format-findings";
