use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).expect("ASCII"));
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal")).collect()
}

/// The responses of RFC 7541, C.6, for a table of 256 bytes.
const RFC_RESPONSES: [&str; 3] = [
    "3fe101 4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 8f0b \
     97c8 e9ae 82ae 43d3",
    "4883 640e ffc1 c0bf",
    "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b \
     3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
];

#[test]
fn the_examples_of_the_rfc_are_decoded() {
    let mut decoder = HeaderDecoder::default();
    let decoded = RFC_RESPONSES
        .map(|block| decoder.decode(&bytes(block), None).expect("HPACK"))
        .map(|fields| (fields.status, fields.bytes, fields.is_malformed));
    let first =
        "cache-controlprivatedateMon, 21 Oct 2013 20:13:21 GMTlocationhttps://www.example.com";
    let more =
        "content-encodinggzipset-cookiefoo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    let (first, third) = (first.len() as u64, (first.len() + more.len()) as u64);
    assert_eq!(
        decoded,
        [(Some(302), first, false), (Some(307), first, false), (Some(200), third, false)]
    );
    // Sizes of the last table of C.6.3.
    let sizes: Vec<usize> = decoder
        .dynamic
        .iter()
        .map(|(name, value)| name.len() + value.len() + ENTRY_OVERHEAD)
        .collect();
    assert_eq!((sizes, decoder.size), (vec![98, 52, 65], 215));
}

#[test]
fn a_repeated_block_is_decoded_anew_after_the_table_has_changed() {
    let mut decoder = HeaderDecoder::default();
    // x-pid: 1, then the newest entry twice, then x-pid: 2, then the newest entry.
    let (one, two) = (bytes("88 4005 782d7069640131"), bytes("88 4005 782d7069640132"));
    let newest = bytes("88 be");
    let mut pid = |block: &[u8]| decoder.decode(block, Some("X-Pid")).expect("HPACK").pid;
    assert_eq!([pid(&one), pid(&newest), pid(&newest)], [Some(1); 3]);
    assert_eq!([pid(&two), pid(&newest), pid(&newest)], [Some(2); 3]);
}

#[test]
fn what_is_no_hpack_is_refused() {
    for block in [
        "80",             // index 0
        "be",             // an entry that the table does not have
        "ff ffffffff7f",  // an integer that is too large
        "ff ff",          // an integer without its end
        "40 05 6162",     // a string without its end
        "3f e2ff03",      // a table larger than allowed
        "00 01 61 81 18", // a Huffman string with wrong padding
    ] {
        let mut decoder = HeaderDecoder::default();
        assert_eq!(decoder.decode(&bytes(block), None), Err(HpackError), "{block}");
    }
}

#[test]
fn wrong_numbers_and_pseudo_fields_are_malformed() {
    for (block, is_malformed) in [
        ("88 5c 01 37 5c 01 37", false), // twice the same content-length
        ("88 5c 01 37 5c 01 38", true),
        ("88 5c 02 2d 31", true), // content-length: -1
        ("88 88", true),          // two statuses
        ("08 03 31 32 78", true), // :status: 12x
        ("82", true),             // :method
    ] {
        let fields = HeaderDecoder::default().decode(&bytes(block), None).expect("HPACK");
        assert_eq!(fields.is_malformed, is_malformed, "{block}");
    }
}

fn field(name: &str, value: &str) -> (String, Vec<u8>) {
    (name.to_string(), value.as_bytes().to_vec())
}

#[test]
fn later_requests_use_what_the_first_one_has_added() {
    let long = "x".repeat(DEFAULT_TABLE_SIZE);
    let many: Vec<(String, Vec<u8>)> = (0..90).map(|n| field(&format!("x-{n}"), "v")).collect();
    let mut lists = vec![
        vec![field(":method", "GET"), field(":authority", "h:1"), field("accept", "*/*")],
        vec![field("x-long", &long), field("x-short", "a"), field("te", "")],
    ];
    lists.push(many);
    for list in lists {
        let block = RequestBlock::encode(&list);
        let mut tables = HeaderDecoder::default();
        let expected: usize =
            list.iter().filter(|(n, _)| !n.starts_with(':')).map(|(n, v)| n.len() + v.len()).sum();
        for form in [&block.plain, &block.inserting, &block.indexed, &block.indexed, &block.plain] {
            let fields = tables.decode(form, Some("x-pid")).expect("HPACK");
            assert_eq!(fields.bytes, expected as u64);
        }
        assert!(block.indexed.len() < block.plain.len());
    }
}
