import { describeCases } from "./check";
import { postprocessCases } from "./cases/postprocess";

describeCases("post-processing", postprocessCases);
