import { postprocessCases } from "./cases/postprocess";
import { describeCases } from "./check";

describeCases("post-processing", postprocessCases);
