/**
 * A bold 7x13 bitmap font of the printable ASCII characters: X.Org's misc-fixed "7x13B", which is in the public domain
 * ("Public domain font. Share and enjoy.").
 */
export const GLYPH_WIDTH = 7;
export const GLYPH_HEIGHT = 13;

/** Thirteen rows per character from space on, one byte each; the highest bit is the leftmost pixel. */
const GLYPHS = [
  "00000000000000000000000000", // space
  "00003030303030300030300000", // !
  "00006c6c6c0000000000000000", // "
  "000028287c7c287c7c28280000", // #
  "00003078b4b07834b478300000", // $
  "0000e4ace81830605cd49c0000", // %
  "000070d8d8d870d4dcd8740000", // &
  "00003030303000000000000000", // '
  "00001830306060603030180000", // (
  "00006030301818183030600000", // )
  "000000004830fcfc3048000000", // *
  "000000003030fcfc3030000000", // +
  "00000000000000003838306000", // ,
  "00000000000000fc0000000000", // -
  "00000000000000000030783000", // .
  "00000c0c1818306060c0c00000", // /
  "00003048cccccccccc48300000", // 0
  "00003070b03030303030fc0000", // 1
  "000078cccc0c3860c0c0fc0000", // 2
  "0000fc0c1830780c0ccc780000", // 3
  "00000c1c3c6cccccfc0c0c0000", // 4
  "0000fcc0c0f8cc0c0ccc780000", // 5
  "000078ccc0c0f8cccccc780000", // 6
  "0000fc0c0c1818303060600000", // 7
  "000078cccccc78cccccc780000", // 8
  "000078cccccc7c0c0ccc780000", // 9
  "00000000307830000030783000", // :
  "00000000307830003838306000", // ;
  "00000c183060c06030180c0000", // <
  "0000000000fc0000fc00000000", // =
  "0000c06030180c183060c00000", // >
  "000078cccc0c38300030300000", // ?
  "0000788c8cbcacbc808c780000", // @
  "000078ccccccfccccccccc0000", // A
  "0000f8ccccccf8ccccccf80000", // B
  "000078ccc0c0c0c0c0cc780000", // C
  "0000f8ccccccccccccccf80000", // D
  "0000fcc0c0c0f8c0c0c0fc0000", // E
  "0000fcc0c0c0f8c0c0c0c00000", // F
  "000078ccc0c0dccccccc7c0000", // G
  "0000ccccccccfccccccccc0000", // H
  "0000fc30303030303030fc0000", // I
  "00000c0c0c0c0c0c0ccc780000", // J
  "0000c4ccd8f0e0f0d8ccc40000", // K
  "0000c0c0c0c0c0c0c0c0fc0000", // L
  "000084ccfcfccccccccccc0000", // M
  "0000ccccececfcdcdccccc0000", // N
  "000078cccccccccccccc780000", // O
  "0000f8ccccccf8c0c0c0c00000", // P
  "000078ccccccccccecdc780c00", // Q
  "0000f8ccccccf8f0d8ccc40000", // R
  "000078ccc0c0780c0ccc780000", // S
  "0000fc30303030303030300000", // T
  "0000cccccccccccccccc780000", // U
  "0000cccccc4848783030300000", // V
  "0000ccccccccccfcfccc840000", // W
  "000084cc4878307848cc840000", // X
  "0000cccc787830303030300000", // Y
  "0000fc0c0c183060c0c0fc0000", // Z
  "00007860606060606060780000", // [
  "0000c0c060603018180c0c0000", // \
  "00007818181818181818780000", // ]
  "00003078cc8400000000000000", // ^
  "00000000000000000000fcfc00", // _
  "00603018000000000000000000", // `
  "0000000000780c7ccccc7c0000", // a
  "0000c0c0c0f8ccccccccf80000", // b
  "000000000078ccc0c0cc780000", // c
  "00000c0c0c7ccccccccc7c0000", // d
  "000000000078ccfcc0cc780000", // e
  "0000386c6060f0606060600000", // f
  "000000000074cccc78c078cc78", // g
  "0000c0c0c0f8cccccccccc0000", // h
  "00003030007030303030fc0000", // i
  "00000c0c000c0c0c0c0c0ccc78", // j
  "0000c0c0c0ccd8f0f0d8cc0000", // k
  "00007030303030303030fc0000", // l
  "0000000000d8fcfccccccc0000", // m
  "0000000000f8cccccccccc0000", // n
  "000000000078cccccccc780000", // o
  "0000000000f8ccccccf8c0c0c0", // p
  "00000000007ccccccc7c0c0c0c", // q
  "0000000000f8ccc0c0c0c00000", // r
  "000000000078cc6018cc780000", // s
  "0000006060f86060606c380000", // t
  "0000000000cccccccccc7c0000", // u
  "0000000000cccccc7878300000", // v
  "0000000000ccccccfcfc480000", // w
  "0000000000cccc7878cccc0000", // x
  "0000000000cccccccc7c0ccc78", // y
  "0000000000fc0c1860c0fc0000", // z
  "00003860603060306060380000", // {
  "00003030303030303030300000", // |
  "00007018183018301818700000", // }
  "000064fc980000000000000000", // ~
] as const;

/** A hollow box: stands for what the font lacks. */
const MISSING = "0000fc84848484848484fc0000";

const rows = new Map<string, Uint8Array>();

/** The thirteen rows of a character, one byte each; the highest bit is the leftmost pixel. */
export function glyphOf(character: string): Uint8Array {
  let glyph = rows.get(character);
  if (!glyph) {
    const code = character.length === 1 ? character.charCodeAt(0) : 0;
    glyph = Uint8Array.fromHex(GLYPHS[code - 32] ?? MISSING);
    rows.set(character, glyph);
  }
  return glyph;
}

/** The characters that are drawn for a text: accents are dropped, so that "Müller" stays legible. */
export function charactersOf(text: string): string[] {
  return [...text.normalize("NFKD").replace(/\p{Mark}/gu, "")];
}
