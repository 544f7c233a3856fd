import { quantizeCases } from "./cases/quantize";
import { describeCases } from "./check";

describeCases("quantization", quantizeCases);
