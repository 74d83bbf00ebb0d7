//! Decodes the Huffman code of HPACK (RFC 7541, appendix B).
//!
//! The code is canonical: ordered by length, then by symbol, its codes are consecutive numbers. So the lengths say all.

/// Length in bits of each symbol's code. The end-of-string symbol, 30 ones, follows the last one.
#[rustfmt::skip]
const CODE_LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

/// Longest code, in bits.
const MAX_CODE_LENGTH: usize = 30;

/// The code, prepared for decoding.
struct DecodingTable {
    /// Symbols in the order of their codes.
    symbols: [u8; 256],
    /// Of each length: its first code, and the position of that code's symbol in `symbols`.
    first: [(u32, u16); MAX_CODE_LENGTH + 1],
    /// Of each length: its number of codes.
    counts: [u16; MAX_CODE_LENGTH + 1],
}

static TABLE: DecodingTable = DecodingTable::from_lengths();

impl DecodingTable {
    const fn from_lengths() -> DecodingTable {
        let mut table = DecodingTable {
            symbols: [0; 256],
            first: [(0, 0); MAX_CODE_LENGTH + 1],
            counts: [0; MAX_CODE_LENGTH + 1],
        };
        let (mut code, mut position, mut length) = (0, 0, 1);
        while length <= MAX_CODE_LENGTH {
            code <<= 1;
            table.first[length] = (code, position);
            let mut symbol = 0;
            while symbol < CODE_LENGTHS.len() {
                if CODE_LENGTHS[symbol] as usize == length {
                    table.symbols[position as usize] = symbol as u8;
                    table.counts[length] += 1;
                    position += 1;
                    code += 1;
                }
                symbol += 1;
            }
            length += 1;
        }
        table
    }
}

/// Appends the decoded text to `decoded`; `None` if it is not in this code, or wrongly padded.
pub(super) fn decode(encoded: &[u8], decoded: &mut Vec<u8>) -> Option<()> {
    let (mut code, mut length) = (0u32, 0);
    for byte in encoded {
        for bit in (0..8).rev() {
            code = code << 1 | u32::from(byte >> bit & 1);
            length += 1;
            let (first, position) = TABLE.first[length];
            let number = code.wrapping_sub(first);
            if number < u32::from(TABLE.counts[length]) {
                decoded.push(TABLE.symbols[usize::from(position) + number as usize]);
                (code, length) = (0, 0);
            } else if length == MAX_CODE_LENGTH {
                return None;
            }
        }
    }
    // The rest of the last byte is filled with ones.
    (length < 8 && code == (1 << length) - 1).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(encoded: &[u8]) -> Option<String> {
        let mut text = Vec::new();
        decode(encoded, &mut text)?;
        Some(String::from_utf8(text).expect("text"))
    }

    /// The examples of RFC 7541, C.4 and C.6.
    #[test]
    fn the_examples_of_the_rfc_are_decoded() {
        let www = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decoded(&www).as_deref(), Some("www.example.com"));
        let no_cache = [0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf];
        assert_eq!(decoded(&no_cache).as_deref(), Some("no-cache"));
        let date = [
            0xd0, 0x7a, 0xbe, 0x94, 0x10, 0x54, 0xd4, 0x44, 0xa8, 0x20, 0x05, 0x95, 0x04, 0x0b,
            0x81, 0x66, 0xe0, 0x82, 0xa6, 0x2d, 0x1b, 0xff,
        ];
        assert_eq!(decoded(&date).as_deref(), Some("Mon, 21 Oct 2013 20:13:21 GMT"));
        assert_eq!(decoded(&[]).as_deref(), Some(""));
    }

    #[test]
    fn wrong_padding_and_the_end_of_string_symbol_are_refused() {
        // "0" is 00000: the rest must be ones, and less than a byte.
        assert_eq!(decoded(&[0b0000_0111]).as_deref(), Some("0"));
        assert_eq!(decoded(&[0b0000_0110]), None);
        assert_eq!(decoded(&[0b0000_0111, 0xff]), None);
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), None);
    }

    #[test]
    fn codes_fill_the_code_space_but_for_the_end_of_string_symbol() {
        let used: u64 =
            CODE_LENGTHS.iter().map(|length| 1 << (MAX_CODE_LENGTH - usize::from(*length))).sum();
        assert_eq!(used, (1 << MAX_CODE_LENGTH) - 1);
    }
}
