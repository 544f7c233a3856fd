import { describeCases } from "./check";
import { normCases } from "./cases/norm";

describeCases("batch normalization", normCases);
