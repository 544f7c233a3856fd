import { normCases } from "./cases/norm";
import { describeCases } from "./check";

describeCases("batch normalization", normCases);
