//! Finds the return addresses in a copied stack, with the unwind information of the loaded files.

use std::sync::Arc;

use framehop::{
    CacheNative, ExplicitModuleSectionInfo, MayAllocateDuringUnwind, Module, UnwindRegsNative,
    Unwinder, UnwinderNative,
};
use object::elf::PF_X;
use object::{Object, ObjectSection, ObjectSegment, SegmentFlags};
use prefork_os::stack_capture::CapturedStack;

use super::loaded_files::LoadedFile;

/// How many frames of a stack are found. More than this many are recursion.
const MAX_UNWOUND_FRAMES: usize = 8192;

/// The largest unwind section that is read, in bytes.
const MAX_SECTION_BYTES: u64 = 256 << 20;

/// The contents of a section.
type SectionData = Arc<[u8]>;

type FileUnwinder = UnwinderNative<SectionData, MayAllocateDuringUnwind>;

/// The unwinder for the files of one worker.
pub(super) struct StackUnwinder {
    unwinder: FileUnwinder,
    cache: CacheNative<MayAllocateDuringUnwind>,
    /// For each loaded file, what to subtract from an address to get the address in the file. `None` if it is unknown.
    biases: Vec<Option<u64>>,
}

/// The frames of one stack.
pub(super) struct UnwoundStack {
    /// Addresses inside the instruction that is executed or has called, innermost first.
    pub(super) addresses: Vec<u64>,
    /// Whether the outermost frame is missing.
    pub(super) is_cut: bool,
}

impl StackUnwinder {
    /// Reads the unwind information of all files.
    pub(super) fn new(files: &[LoadedFile]) -> StackUnwinder {
        let mut unwinder = FileUnwinder::new();
        let biases = files.iter().map(|file| add_file(&mut unwinder, file)).collect();
        StackUnwinder { unwinder, cache: CacheNative::new(), biases }
    }

    /// Returns the file at `address`, by its index, and the address in it.
    pub(super) fn locate(&self, files: &[LoadedFile], address: u64) -> Option<(usize, u64)> {
        let contains = |file: &LoadedFile| {
            file.code.iter().find(|code| (code.start..code.end).contains(&address)).copied()
        };
        let (index, code) =
            files.iter().enumerate().find_map(|(index, file)| Some((index, contains(file)?)))?;
        let in_file = match self.biases.get(index).copied().flatten() {
            Some(bias) => address.wrapping_sub(bias),
            None => address - code.start + code.offset,
        };
        Some((index, in_file))
    }

    pub(super) fn unwind(&mut self, copy: &CapturedStack) -> UnwoundStack {
        // What lies outside of the copy is unknown; the sum cannot overflow, as the copy is small.
        let mut read_word = |address: u64| {
            let at = usize::try_from(address.checked_sub(copy.sp).ok_or(())?).map_err(|_| ())?;
            let bytes = copy.stack.get(at..at.checked_add(8).ok_or(())?).ok_or(())?;
            bytes.try_into().map(u64::from_ne_bytes).map_err(|_| ())
        };
        let registers = registers_of(copy);
        let mut frames =
            self.unwinder.iter_frames(copy.pc, registers, &mut self.cache, &mut read_word);
        let mut unwound = UnwoundStack { addresses: Vec::new(), is_cut: false };
        loop {
            match frames.next() {
                // A return address lies behind the call, which may be the last instruction of its function.
                Ok(Some(frame)) => unwound.addresses.push(frame.address_for_lookup()),
                Ok(None) => return unwound,
                Err(_) => unwound.is_cut = true,
            }
            unwound.is_cut |= unwound.addresses.len() >= MAX_UNWOUND_FRAMES;
            if unwound.is_cut {
                return unwound;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn registers_of(copy: &CapturedStack) -> UnwindRegsNative {
    UnwindRegsNative::new(copy.pc, copy.sp, copy.fp)
}

#[cfg(target_arch = "aarch64")]
fn registers_of(copy: &CapturedStack) -> UnwindRegsNative {
    // Addresses of user space have at most 48 bits; with pointer authentication the upper ones hold a signature.
    let mask = framehop::aarch64::PtrAuthMask::from_max_known_address((1 << 48) - 1);
    UnwindRegsNative::new_with_ptr_auth_mask(mask, copy.lr, copy.sp, copy.fp)
}

fn is_executable<'data>(segment: &impl ObjectSegment<'data>) -> bool {
    matches!(segment.flags(), SegmentFlags::Elf { p_flags } if p_flags & PF_X != 0)
}

/// Adds the unwind information of a file. Returns the difference between its addresses in memory and in the file.
fn add_file(unwinder: &mut FileUnwinder, file: &LoadedFile) -> Option<u64> {
    let reader = file.reader()?;
    let object = object::File::parse(&reader).ok()?;
    let code = file.code.first()?;
    // Only executable segments: the one before may end in the page in which the code begins.
    let bias = object.segments().filter(is_executable).find_map(|segment| {
        let (offset, size) = segment.file_range();
        // A mapping begins at a page, a segment anywhere in it.
        let page_start = offset & !0xfff;
        let contains = (page_start..offset.checked_add(size)?).contains(&code.offset);
        let address_of_mapping = segment.address().wrapping_sub(offset).wrapping_add(code.offset);
        contains.then(|| code.start.wrapping_sub(address_of_mapping))
    })?;
    let section = |name: &str| {
        let section = object.section_by_name(name)?;
        (section.size() <= MAX_SECTION_BYTES).then_some(section)
    };
    let range = |name: &str| {
        let section = section(name)?;
        Some(section.address()..section.address().checked_add(section.size())?)
    };
    let contents = |name: &str| {
        let data = section(name)?.uncompressed_data().ok()?;
        Some(SectionData::from(data.as_ref()))
    };
    let info = ExplicitModuleSectionInfo {
        base_svma: 0,
        text_svma: range(".text"),
        text: None,
        got_svma: range(".got"),
        eh_frame_svma: range(".eh_frame"),
        eh_frame: contents(".eh_frame"),
        eh_frame_hdr_svma: range(".eh_frame_hdr"),
        eh_frame_hdr: contents(".eh_frame_hdr"),
        debug_frame: contents(".debug_frame"),
        ..ExplicitModuleSectionInfo::default()
    };
    let start = file.code.iter().map(|code| code.start).min()?;
    let end = file.code.iter().map(|code| code.end).max()?;
    unwinder.add_module(Module::new(file.name.clone(), start..end, bias, info));
    Some(bias)
}
