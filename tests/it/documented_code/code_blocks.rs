//! The fenced code of Markdown pages, with the markers before it that say how tests run it.

/// A fenced block of code.
pub struct CodeBlock {
    /// Number of the line of its fence, from 1.
    pub line: usize,
    /// What follows the opening fence, such as `rust,no_run`.
    pub language: String,
    pub text: String,
    pub markers: Vec<Marker>,
}

/// An HTML comment before a block, which readers do not see.
#[derive(Debug, PartialEq)]
pub enum Marker {
    /// `<!-- not run: REASON -->`: tests skip the block, and print the reason.
    NotRun(String),
    /// `<!-- first: COMMAND -->`: runs before the block.
    First(String),
    /// `<!-- file: NAME -->`: the block is written to this file of the page's directory.
    File(String),
    /// `<!-- log -->`: the servers of the page have logged these lines.
    Log,
    /// `<!-- output of: COMMAND -->`: the command prints these lines.
    OutputOf(String),
}

impl Marker {
    /// Parses a line; `None` for all others than markers.
    fn parse(line: &str) -> Option<Marker> {
        let comment = line.trim().strip_prefix("<!--")?.strip_suffix("-->")?.trim();
        let (word, value) = comment.split_once(':').unwrap_or((comment, ""));
        let value = value.trim().to_string();
        match word {
            "not run" if !value.is_empty() => Some(Marker::NotRun(value)),
            "first" => Some(Marker::First(value)),
            "file" => Some(Marker::File(value)),
            "log" => Some(Marker::Log),
            "output of" => Some(Marker::OutputOf(value)),
            _ => None,
        }
    }
}

impl CodeBlock {
    /// Returns why the block is not run, if it has such a marker.
    pub fn reason_not_run(&self) -> Option<&str> {
        self.markers.iter().find_map(|marker| match marker {
            Marker::NotRun(reason) => Some(reason.as_str()),
            _ => None,
        })
    }

    /// Returns the first marker for which `pick` returns something.
    pub fn marker<'a>(&'a self, pick: impl Fn(&'a Marker) -> Option<&'a str>) -> Option<&'a str> {
        self.markers.iter().find_map(pick)
    }

    /// The commands after `$` in a console session, each with the lines that it prints.
    pub fn commands(&self) -> Vec<(String, Vec<&str>)> {
        let mut commands: Vec<(String, Vec<&str>)> = Vec::new();
        let mut lines = self.text.lines();
        while let Some(line) = lines.next() {
            let Some(first) = line.strip_prefix("$ ") else {
                if let Some((_, output)) = commands.last_mut() {
                    output.push(line);
                }
                continue;
            };
            let mut command = first.to_string();
            while command.ends_with('\\') {
                command.push('\n');
                command.push_str(lines.next().unwrap_or_default());
            }
            commands.push((command, Vec::new()));
        }
        commands
    }
}

/// Returns the fenced blocks of a page.
pub fn code_blocks(page: &str) -> Vec<CodeBlock> {
    let (mut blocks, mut markers) = (Vec::new(), Vec::new());
    let mut lines = page.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            let indent = line.len() - line.trim_start().len();
            let body = lines.by_ref().map(|(_, line)| line);
            let body = body.take_while(|line| !line.trim_start().starts_with("```"));
            let text = body.map(|line| line.get(indent..).unwrap_or_default().to_string() + "\n");
            blocks.push(CodeBlock {
                line: index + 1,
                language: language.trim().to_string(),
                text: text.collect(),
                markers: std::mem::take(&mut markers),
            });
        } else if let Some(marker) = Marker::parse(line) {
            markers.push(marker);
        } else if !line.trim().is_empty() {
            // A marker is for the block that follows it.
            markers.clear();
        }
    }
    blocks
}

#[test]
fn blocks_have_their_markers_and_commands() {
    let page = "a\n\n<!-- first: touch a -->\n<!-- log -->\n\n```console\n$ one \\\n  two  # why\nprinted\n$ three\n```\n\
                <!-- not run: it is long -->\nb\n   ```toml\n   x = 1\n   ```\n";
    let blocks = code_blocks(page);
    assert_eq!(blocks.len(), 2);
    assert_eq!((blocks[0].line, blocks[0].language.as_str()), (6, "console"));
    assert_eq!(blocks[0].markers, [Marker::First("touch a".to_string()), Marker::Log]);
    let commands = blocks[0].commands();
    assert_eq!(commands[0], ("one \\\n  two  # why".to_string(), vec!["printed"]));
    assert_eq!(commands[1].0, "three");
    assert_eq!((blocks[1].text.as_str(), blocks[1].reason_not_run()), ("x = 1\n", None));
}
