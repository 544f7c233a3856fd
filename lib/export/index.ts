export { exportOnnx, type OnnxOptions } from "./onnx";
