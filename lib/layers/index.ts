export * from "./basic";
export { Layer, type Values } from "./layer";
export { Model, type ModelOptions } from "./model";
