import { poolCases } from "./cases/pool";
import { describeCases } from "./check";

describeCases("pooling and upsampling", poolCases);
