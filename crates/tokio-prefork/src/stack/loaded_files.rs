//! The program and the shared libraries that a worker has loaded: where they are mapped, and their files.
//!
//! The file at the path of a mapping may have been replaced by an upgrade. It is used only if device and inode are those
//! of the mapping; a deleted program is still reachable through `/proc/PID/exe`.

use std::fs::{self, File, OpenOptions};
use std::io::{Cursor, Read, Seek};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;
use object::ReadCache;
use prefork_os::stack_capture::vdso_image;

/// The name of the code that the kernel maps into every process.
const VDSO_NAME: &str = "[vdso]";

/// The most mappings that are read.
const MAX_MAPPINGS: usize = 65_536;
/// The most files of which the unwind information is read.
const MAX_FILES: usize = 512;

/// A file that is mapped into a worker.
#[derive(Debug)]
pub(super) struct LoadedFile {
    /// The last part of its path, or `[vdso]`.
    pub(super) name: String,
    /// Its executable mappings: addresses and the offset in the file.
    pub(super) code: Vec<CodeMapping>,
    /// The open file. `None` if it cannot be opened any more, and for the vDSO.
    pub(super) file: Option<File>,
    inode: u64,
    path: String,
}

/// A file that is read in pieces.
pub(super) trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

/// Reads the pieces of a file that are needed, and keeps them.
pub(super) type FileReader = ReadCache<Box<dyn ReadSeek>>;

impl LoadedFile {
    /// Returns a reader of the file. `None` if it could not be opened.
    pub(super) fn reader(&self) -> Option<FileReader> {
        let source: Box<dyn ReadSeek> = match &self.file {
            Some(file) => Box::new(file.try_clone().ok()?),
            None if self.name == VDSO_NAME => Box::new(Cursor::new(vdso_image()?)),
            None => return None,
        };
        Some(ReadCache::new(source))
    }
}

/// An executable mapping of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CodeMapping {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) offset: u64,
}

/// Returns what process `pid` has loaded. If its mappings are not readable and `has_own_image`, returns what this process has
/// loaded: both were forked from the same process, and share its addresses.
pub(super) fn loaded_files(pid: u32, has_own_image: bool) -> Result<Vec<LoadedFile>, String> {
    let theirs = format!("/proc/{pid}");
    let (directory, maps) = match fs::read(format!("{theirs}/maps")) {
        Ok(maps) if !maps.is_empty() => (theirs, maps),
        Err(_) if has_own_image => {
            let maps = fs::read("/proc/self/maps");
            (
                "/proc/self".to_string(),
                maps.map_err(|e| format!("cannot read /proc/self/maps: {e}"))?,
            )
        }
        Ok(_) => return Err("the process has ended".to_string()),
        Err(e) => {
            return Err(format!(
                "cannot read {theirs}/maps: {e}; a worker of the previous binary under another user can be read by a \
                 primary with CAP_SYS_PTRACE only"
            ));
        }
    };
    let mut files = parse_maps(&String::from_utf8_lossy(&maps));
    for file in &mut files {
        file.file = open_mapped_file(&directory, file);
    }
    Ok(files)
}

/// Parses a maps file: the files with executable mappings.
fn parse_maps(maps: &str) -> Vec<LoadedFile> {
    let mut files: Vec<LoadedFile> = Vec::new();
    for line in maps.lines().take(MAX_MAPPINGS) {
        let Some((mapping, inode, path)) = parse_code_mapping(line) else { continue };
        let known = files.iter().position(|file| file.path == path && file.inode == inode);
        match known {
            Some(known) => files[known].code.push(mapping),
            None if files.len() < MAX_FILES => {
                let plain = path.strip_suffix(" (deleted)").unwrap_or(&path);
                let name = plain.rsplit('/').next().unwrap_or(plain).to_string();
                let code = vec![mapping];
                files.push(LoadedFile { name, code, file: None, inode, path });
            }
            None => {}
        }
    }
    files
}

/// Parses a line like `55d0-55f0 r-xp 00010000 fe:00 1234   /usr/bin/app`; `None` for others than code of a file.
fn parse_code_mapping(line: &str) -> Option<(CodeMapping, u64, String)> {
    let mut rest = line;
    let mut next_field = || {
        let (field, after) = rest.split_once(' ')?;
        rest = after.trim_start();
        Some(field)
    };
    let (addresses, access) = (next_field()?, next_field()?);
    let (offset, _device, inode) = (next_field()?, next_field()?, next_field()?);
    let (path, hex) = (rest.trim_end(), |text: &str| u64::from_str_radix(text, 16).ok());
    if !access.contains('x') || !(path.starts_with('/') || path == VDSO_NAME) {
        return None;
    }
    let (start, end) = addresses.split_once('-')?;
    let mapping = CodeMapping { start: hex(start)?, end: hex(end)?, offset: hex(offset)? };
    (mapping.start < mapping.end).then_some(())?;
    Some((mapping, inode.parse().ok()?, path.to_string()))
}

/// Opens the file of a mapping of the process whose directory in `/proc` is `directory`.
fn open_mapped_file(directory: &str, mapped: &LoadedFile) -> Option<File> {
    if !mapped.path.starts_with('/') {
        return None;
    }
    let first = mapped.code.first()?;
    let range = format!("{directory}/map_files/{:x}-{:x}", first.start, first.end);
    // The mapping itself needs a capability, but works for any deleted file.
    let candidates = [mapped.path.clone(), format!("{directory}/exe"), range];
    candidates.iter().find_map(|path| open_if_same(Path::new(path), mapped))
}

/// Opens `path` if it is the regular file of the mapping. A FIFO or a device in its place is not waited for.
fn open_if_same(path: &Path, mapped: &LoadedFile) -> Option<File> {
    // Not the device: for a file on an overlay, maps shows another one than stat.
    let is_same = |meta: &fs::Metadata| meta.is_file() && meta.ino() == mapped.inode;
    fs::metadata(path).ok().filter(is_same)?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    is_same(&file.metadata().ok()?).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0a0000000-55d0a0010000 r--p 00000000 fe:00 1234                       /usr/bin/my app
55d0a0010000-55d0a0020000 r-xp 00010000 fe:00 1234                       /usr/bin/my app
55d0a0020000-55d0a0030000 rw-p 00020000 fe:00 1234                       /usr/bin/my app
7f0000000000-7f0000001000 rw-p 00000000 00:00 0
7f0000002000-7f0000003000 r-xp 00000000 00:00 0
7f0000004000-7f0000005000 r-xp 00001000 fe:00 77                         /lib/libold.so (deleted)
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
7ffd000f0000-7ffd000f2000 r-xp 00000000 00:00 0                          [vdso]
";

    #[test]
    fn maps_list_the_files_with_code() {
        let files = parse_maps(MAPS);
        let names: Vec<&str> = files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["my app", "libold.so", "[vdso]"]);
        let code = CodeMapping { start: 0x55d0_a001_0000, end: 0x55d0_a002_0000, offset: 0x1_0000 };
        assert_eq!((files[0].code.as_slice(), files[0].inode), (&[code][..], 1234));
    }

    #[test]
    fn garbage_in_maps_is_skipped() {
        for line in
            ["", "x", "1-2", "zz-1 r-xp 0 0:0 0 /a", "2-1 r-xp 0 0:0 1 /a", "1-2 r-xp 0 0:0 x /a"]
        {
            assert!(parse_maps(line).is_empty(), "{line:?}");
        }
    }

    #[test]
    fn own_program_is_found_and_a_file_with_another_inode_is_not_used() {
        let mut files = loaded_files(std::process::id(), false).expect("own maps");
        let exe = std::env::current_exe().expect("path");
        let name = exe.file_name().and_then(|name| name.to_str()).expect("name");
        let own = files.iter_mut().find(|file| file.name == name).expect("own program");
        assert!(own.file.is_some());
        own.inode += 1;
        assert!(open_if_same(&exe, own).is_none());
    }
}
