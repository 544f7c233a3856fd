import { groupNormCases } from "./cases/group-norm";
import { normCases } from "./cases/norm";
import { describeCases } from "./check";

describeCases("batch normalization", normCases);
describeCases("group normalization", groupNormCases);
