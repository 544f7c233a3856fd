import { groupNormCases } from "./cases/group-norm";
import { normCases } from "./cases/norm";
import { normJoinCases } from "./cases/norm-join";
import { describeCases } from "./check";

describeCases("batch normalization", normCases);
describeCases("the sum of two batch normalizations", normJoinCases);
describeCases("group normalization", groupNormCases);
