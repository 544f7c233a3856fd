export {
  convolutionTuning,
  convPicks,
  restoreConvPicks,
  type TuningOptions,
  type TuningProgress,
  tuneConvolutions,
} from "./conv-plans";
export { productFlops } from "./cost";
export * from "./functions";
export { paddedChannels } from "./fusion-padding";
export { estimateProgram, type LoweringOptions, planProgram } from "./lowering";
export type { MemoryPlan, MemoryShare } from "./memory-plan";
export {
  type Emitter,
  expectActivation,
  expectShape,
  type Gradient,
  type GradientBuilder,
  type Node,
  nhwc,
  type Op,
  type Preparation,
  rowsAndChannels,
  ShapeError,
  scratchMemory,
} from "./node";
export type { OnnxAttributes, OnnxAttributeValue, OnnxBuilder, OnnxLayout } from "./onnx";
export { type Activation, type FusedActivation, scaleBy } from "./ops/elementwise";
export { type Init, Parameter } from "./parameter";
export { PlanCache } from "./plan-cache";
export {
  type Call,
  type CallProfile,
  type CallSource,
  type GradientCall,
  type PlacedCall,
  Program,
  type ProgramOptions,
} from "./program";
export { observeMagnitudes, type QuantizeOptions, quantizedShare, quantizeGraph, valueKeys } from "./quantize";
export type { RecomputeOption } from "./recompute";
export { applyOp, Graph, isTracing, trace, useParameter, withPath } from "./trace";
export { withoutUnused } from "./unused";
export { type Leaf, type Spec, sameShape, Value } from "./value";
