//! Names and source lines of addresses, from the symbol tables and the debug information of the loaded files.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;

use addr2line::Loader;
use object::{Object, ObjectSymbol, SymbolKind};

use super::loaded_files::{FileReader, LoadedFile};
use super::unwind::{StackUnwinder, UnwoundStack};
use super::worker_stack::{StackFrame, ThreadStack};

/// How many frames of a stack are kept; the same function several times in a row counts once.
const MAX_FRAMES: usize = 64;

/// The most characters of a name or a path that are kept.
const MAX_NAME_CHARS: usize = 1024;

/// The most functions that were inlined into each other and are shown.
const MAX_INLINED: usize = 32;

/// Returns the names of the functions at `addresses` from the symbol tables: quickly, in one pass over each table.
pub(super) fn symbol_names(
    files: &[LoadedFile],
    unwinder: &StackUnwinder,
    addresses: impl Iterator<Item = u64>,
) -> BTreeMap<u64, String> {
    let mut wanted: BTreeMap<usize, BTreeMap<u64, u64>> = BTreeMap::new();
    for address in addresses {
        if let Some((index, in_file)) = unwinder.locate(files, address) {
            wanted.entry(index).or_default().insert(in_file, address);
        }
    }
    let mut names = BTreeMap::new();
    for (index, wanted) in wanted {
        let Some(reader) = files[index].reader() else { continue };
        if let Ok(object) = object::File::parse(&reader) {
            add_symbol_names(&object, &wanted, &mut names);
        }
    }
    names
}

/// Adds the names of the addresses in `wanted`, whose values are the keys in `names`.
fn add_symbol_names<'data>(
    object: &object::File<'data, &'data FileReader>,
    wanted: &BTreeMap<u64, u64>,
    names: &mut BTreeMap<u64, String>,
) {
    // A stripped file has the symbols that it exports.
    let symbols = object.symbols().chain(object.dynamic_symbols());
    for symbol in symbols.filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let end = symbol.address().saturating_add(symbol.size());
        for (_, address) in wanted.range(symbol.address()..end) {
            if !names.contains_key(address)
                && let Ok(name) = symbol.name()
            {
                let name = addr2line::demangle_auto(name.into(), None).into_owned();
                names.insert(*address, shorten(name));
            }
        }
    }
}

/// Makes frames of the addresses in the files of one worker.
pub(super) struct Symbolizer<'a> {
    files: &'a [LoadedFile],
    unwinder: &'a StackUnwinder,
    /// The names from the symbol tables.
    names: &'a BTreeMap<u64, String>,
    /// Whether the debug information is read, for lines and inlined functions. It may be large.
    has_lines: bool,
    /// The loader of each file that a stack has needed; `None` if the file cannot be read.
    loaders: BTreeMap<usize, Option<Loader>>,
    known: BTreeMap<u64, Vec<StackFrame>>,
}

impl<'a> Symbolizer<'a> {
    pub(super) fn new(
        files: &'a [LoadedFile],
        unwinder: &'a StackUnwinder,
        names: &'a BTreeMap<u64, String>,
        has_lines: bool,
    ) -> Symbolizer<'a> {
        let (loaders, known) = (BTreeMap::new(), BTreeMap::new());
        Symbolizer { files, unwinder, names, has_lines, loaders, known }
    }

    /// Replaces the frames of a thread by those of its unwound stack.
    pub(super) fn set_frames(&mut self, thread: &mut ThreadStack, stack: &UnwoundStack) {
        thread.frames.clear();
        thread.is_cut = stack.is_cut;
        for address in &stack.addresses {
            for frame in self.frames_at(*address) {
                let is_same = |last: &StackFrame| {
                    last.function.is_some()
                        && (&last.function, &last.file) == (&frame.function, &frame.file)
                };
                let count = thread.frames.len();
                match thread.frames.last_mut().filter(|last| is_same(last)) {
                    Some(last) => last.repeats = last.repeats.saturating_add(1),
                    None if count == MAX_FRAMES => {
                        thread.is_cut = true;
                        return;
                    }
                    None => thread.frames.push(frame),
                }
            }
        }
    }

    /// Returns the function at `address`, after those that are inlined there.
    fn frames_at(&mut self, address: u64) -> Vec<StackFrame> {
        if let Some(frames) = self.known.get(&address) {
            return frames.clone();
        }
        let function = self.names.get(&address).cloned();
        let plain = StackFrame { function, repeats: 1, ..StackFrame::default() };
        let frames = match self.unwinder.locate(self.files, address) {
            Some((index, in_file)) => {
                let module = self.files[index].name.clone();
                self.frames_in_file(index, StackFrame { module, address: in_file, ..plain })
            }
            None => vec![StackFrame { module: "?".to_string(), address, ..plain }],
        };
        self.known.insert(address, frames.clone());
        frames
    }

    fn frames_in_file(&mut self, index: usize, plain: StackFrame) -> Vec<StackFrame> {
        if !self.has_lines {
            return vec![plain];
        }
        let file = &self.files[index];
        let loader = self.loaders.entry(index).or_insert_with(|| {
            let fd = file.file.as_ref()?.as_raw_fd();
            Loader::new(format!("/proc/self/fd/{fd}")).ok()
        });
        let mut frames =
            loader.as_ref().map_or(Vec::new(), |loader| inlined_frames(loader, &plain));
        match frames.last_mut() {
            // The function into which the others are inlined: debug information may have its name without a path.
            Some(outermost) => outermost.function = plain.function.or(outermost.function.take()),
            None => frames.push(plain),
        }
        frames
    }
}

/// Returns the frames that the debug information has for the address of `plain`, innermost first.
fn inlined_frames(loader: &Loader, plain: &StackFrame) -> Vec<StackFrame> {
    let mut frames = Vec::new();
    let Ok(mut found) = loader.find_frames(plain.address) else { return frames };
    while let Ok(Some(frame)) = found.next() {
        let function = frame.function.and_then(|name| Some(name.demangle().ok()?.into_owned()));
        let function = function.map(|name| without_type_arguments(&name).to_string());
        let location = frame.location;
        let file = location.as_ref().and_then(|location| location.file);
        frames.push(StackFrame {
            function: function.map(shorten),
            file: file.map(|file| shorten(file.to_string())),
            line: location.and_then(|location| location.line),
            is_inlined: true,
            ..plain.clone()
        });
        if frames.len() == MAX_INLINED {
            break;
        }
    }
    if let Some(outermost) = frames.last_mut() {
        outermost.is_inlined = false;
    }
    frames
}

/// Returns the name without what stands in angle brackets at its end: `poll<alloc::boxed::Box<F>>` becomes `poll`.
fn without_type_arguments(name: &str) -> &str {
    if !name.ends_with('>') {
        return name;
    }
    let mut depth = 0usize;
    let start = name.char_indices().rev().find_map(|(at, c)| {
        match c {
            '>' if !name[..at].ends_with('-') => depth += 1,
            '<' => depth -= 1,
            _ => {}
        }
        (depth == 0).then_some(at)
    });
    match start {
        Some(at) if at > 0 => &name[..at],
        _ => name,
    }
}

fn shorten(text: String) -> String {
    match text.char_indices().nth(MAX_NAME_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_arguments_at_the_end_of_a_name_are_left_out() {
        for (name, expected) in [
            ("poll<alloc::boxed::Box<F, A>>", "poll"),
            ("{async_block#1}<alloc::rc::Rc<app::Routes>>", "{async_block#1}"),
            ("call<fn(u8) -> u8>", "call"),
            ("app::fib", "app::fib"),
            ("<a::B as c::D>::e", "<a::B as c::D>::e"),
            ("<a::B as c::D>", "<a::B as c::D>"),
            (">", ">"),
            ("<<>", "<"),
        ] {
            assert_eq!(without_type_arguments(name), expected);
        }
    }
}
