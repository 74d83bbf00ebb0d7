//! README's table of Node's cluster API: each line of code in it is in a program that the compiler has seen.

use crate::tidy::none;

const HEAD: &str = "| Node | here |";

/// Rows of the table: Node's item and ours.
fn rows(readme: &str) -> Vec<(&str, &str)> {
    let table = readme.lines().skip_while(|line| !line.starts_with(HEAD)).skip(2);
    let rows = table.take_while(|line| line.starts_with("| "));
    rows.filter_map(|row| {
        let mut cells = row.trim_start_matches("| ").split(" | ");
        Some((cells.next()?, cells.next()?.trim_end_matches('|').trim()))
    })
    .collect()
}

fn squeezed(text: &str) -> String {
    text.split_whitespace().collect()
}

#[test]
fn every_line_of_code_in_the_table_of_nodes_api_compiles() {
    let root = env!("CARGO_MANIFEST_DIR");
    let read = |path: &str| std::fs::read_to_string(format!("{root}/{path}")).expect(path);
    let (readme, program) = (read("README.md"), squeezed(&read("tests/programs/node.rs")));
    let rows = rows(&readme);
    assert!(rows.len() > 30, "the table has {} rows", rows.len());
    // A bar in a table is written with a backslash.
    let rows: Vec<_> =
        rows.into_iter().map(|(node, ours)| (node, ours.replace("\\|", "|"))).collect();
    let code = rows.iter().flat_map(|(_, ours)| ours.split('`').skip(1).step_by(2));
    let code: Vec<&str> = code.collect();
    assert!(code.len() > 30, "{} pieces of code", code.len());
    let missing = code.iter().filter(|code| !program.contains(&squeezed(code)));
    none(
        "code in README's table that is not in tests/programs/node.rs",
        missing.map(ToString::to_string).collect(),
    );
    // What has no code says why not.
    let silent = rows.iter().filter(|(_, ours)| ours.is_empty()).map(|(node, _)| node.to_string());
    none("rows of README's table that say nothing", silent.collect());
}
