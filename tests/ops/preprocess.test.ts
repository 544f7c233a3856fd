import { preprocessCases } from "./cases/preprocess";
import { describeCases } from "./check";

describeCases("preprocessing", preprocessCases);
