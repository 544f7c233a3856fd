import { describeCases } from "./check";
import { poolCases } from "./cases/pool";

describeCases("pooling and upsampling", poolCases);
