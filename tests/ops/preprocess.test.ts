import { describeCases } from "./check";
import { preprocessCases } from "./cases/preprocess";

describeCases("preprocessing", preprocessCases);
