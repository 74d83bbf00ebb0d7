//! Cached metadata of a file: its representations with their header values and, if small, their content.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::http::HeaderValue;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::accept_encoding::Coding;
use super::body::BodySegment;
use super::conditional::{Validators, format_http_date};
use super::content_type;
use super::open_file::{self, OpenFile, OpenFileLimit, OpenedPath};
use super::root_dir::{DiskWait, RootDir};

/// Largest content that is cached in memory, in bytes; for a larger file the open descriptor is cached.
const MAX_CONTENT_IN_MEMORY: u64 = 64 * 1024;
/// Age from which one request reloads an entry while others still use it.
const REFRESH_AGE: Duration = Duration::from_millis(300);
/// Age from which an entry is no longer used: a change is seen within a second.
const MAX_AGE: Duration = Duration::from_millis(700);

/// Bytes that an open descriptor counts in the cache, which bounds their number.
const OPEN_FILE_COST: usize = 64 * 1024;
/// Bytes that an entry counts in addition to its content.
const ENTRY_COST: usize = 1024;

/// Index file that is served for a directory.
const INDEX_FILE: &[u8] = b"index.html";

/// Result of loading a path.
pub(super) enum LoadedPath {
    File(Arc<FileEntry>),
    /// A directory, at this path without a slash at its end.
    Directory(Vec<u8>),
    /// A directory that has no index.
    NoIndex,
}

/// A file and its precompressed variants.
#[derive(Debug)]
pub(super) struct FileEntry {
    pub(super) content_type: HeaderValue,
    pub(super) plain: Representation,
    /// The variants in the order of [`Coding::ALL`].
    pub(super) coded: Vec<(Coding, Representation)>,
    loaded_at: Instant,
    is_refreshing: AtomicBool,
}

/// A file in one content coding, with its header values.
#[derive(Debug)]
pub(super) struct Representation {
    pub(super) length: u64,
    pub(super) content_length: HeaderValue,
    pub(super) etag: HeaderValue,
    /// Last modification in seconds since 1970, at most the time of loading; `None` before 1970.
    pub(super) modified: Option<u64>,
    pub(super) last_modified: Option<HeaderValue>,
    content: RepresentationContent,
}

#[derive(Debug)]
enum RepresentationContent {
    Memory(Bytes),
    Disk(Arc<OpenFile>),
}

/// Loads the file, or the index of the directory, at a normalized path.
pub(super) fn load_entry(
    root: &RootDir,
    path: &[u8],
    limit: &Arc<OpenFileLimit>,
    wait: DiskWait,
) -> Result<LoadedPath, Errno> {
    if !path.ends_with(b"/") {
        return match open_file::open_regular_file(root, &path[1..], limit, wait)? {
            OpenedPath::File(file) => {
                Ok(LoadedPath::File(FileEntry::load(root, path, file, limit, wait)?))
            }
            OpenedPath::Directory => Ok(LoadedPath::Directory(path.to_vec())),
            OpenedPath::Other => Err(Errno::NOENT),
        };
    }
    let index = [path, INDEX_FILE].concat();
    match open_file::open_regular_file(root, &index[1..], limit, wait) {
        Ok(OpenedPath::File(file)) => {
            Ok(LoadedPath::File(FileEntry::load(root, &index, file, limit, wait)?))
        }
        Ok(OpenedPath::Directory) => Ok(LoadedPath::Directory(index)),
        Ok(OpenedPath::Other) | Err(Errno::NOENT) => {
            let dir = if path == b"/" { b"." } else { &path[1..] };
            root.open_below(dir, OFlags::PATH | OFlags::DIRECTORY, wait)?;
            Ok(LoadedPath::NoIndex)
        }
        Err(errno) => Err(errno),
    }
}

impl FileEntry {
    fn load(
        root: &RootDir,
        path: &[u8],
        file: OpenFile,
        limit: &Arc<OpenFileLimit>,
        wait: DiskWait,
    ) -> Result<Arc<FileEntry>, Errno> {
        let loaded_at = Instant::now();
        let changed = file.modified.0;
        let plain = Representation::load(file, "", wait)?;
        let mut coded = Vec::new();
        for coding in Coding::ALL {
            let coded_path = [&path[1..], coding.suffix()].concat();
            match open_file::open_regular_file(root, &coded_path, limit, wait) {
                // A variant older than the plain file was compressed from an earlier version.
                Ok(OpenedPath::File(file)) if file.modified.0 >= changed => {
                    coded.push((coding, Representation::load(file, coding.name(), wait)?));
                }
                Err(errno @ (Errno::AGAIN | Errno::MFILE | Errno::NFILE)) => return Err(errno),
                Ok(_) | Err(_) => {}
            }
        }
        let content_type = content_type::guess_content_type(path);
        let is_refreshing = AtomicBool::new(false);
        Ok(Arc::new(FileEntry { content_type, plain, coded, loaded_at, is_refreshing }))
    }

    /// Returns whether the entry may be used at `now`. Some time before the end one caller gets `false` and loads the entry
    /// anew, on the event loop or, with [`DiskWait::Allowed`], in the pool.
    pub(super) fn is_fresh(&self, now: Instant, wait: DiskWait) -> bool {
        let age = now.saturating_duration_since(self.loaded_at);
        let is_replaced_by_another =
            || wait == DiskWait::Never && self.is_refreshing.swap(true, Ordering::Relaxed);
        (age < REFRESH_AGE || (age < MAX_AGE && is_replaced_by_another())) && self.is_unchanged()
    }

    /// Returns whether files that are read while sending still have the promised length. One that has become shorter would
    /// break the response off.
    fn is_unchanged(&self) -> bool {
        let mut all = self.coded.iter().map(|(_, coded)| coded).chain([&self.plain]);
        all.all(|representation| match &representation.content {
            RepresentationContent::Memory(_) => true,
            RepresentationContent::Disk(file) => file.is_unchanged(),
        })
    }

    /// Returns the representation in `coding`, or the plain one.
    pub(super) fn representation(&self, coding: Option<Coding>) -> &Representation {
        let found =
            coding.and_then(|wanted| self.coded.iter().find(|(coding, _)| *coding == wanted));
        found.map_or(&self.plain, |(_, representation)| representation)
    }

    /// Returns the cost of the entry in the cache, in bytes.
    pub(super) fn cost(&self) -> usize {
        let representations = self.coded.iter().map(|(_, coded)| coded).chain([&self.plain]);
        ENTRY_COST + representations.map(Representation::cost).sum::<usize>()
    }
}

impl Representation {
    fn load(file: OpenFile, coding: &str, wait: DiskWait) -> Result<Representation, Errno> {
        let (seconds, nanoseconds) = file.modified;
        let (length, content) = match file.length {
            0..=MAX_CONTENT_IN_MEMORY => {
                let content = file.read_all(wait)?;
                (content.len() as u64, RepresentationContent::Memory(content.into()))
            }
            length => (length, RepresentationContent::Disk(Arc::new(file))),
        };
        let suffix = if coding.is_empty() { String::new() } else { format!("-{coding}") };
        let etag = format!("\"{seconds:x}-{nanoseconds:x}-{length:x}{suffix}\"");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // A date in the future must not be sent (RFC 9110, section 8.8.2.1).
        let modified = u64::try_from(seconds).ok().map(|seconds| seconds.min(now));
        let last_modified = modified.and_then(format_http_date);
        Ok(Representation {
            length,
            content_length: HeaderValue::from(length),
            // Digits and letters only.
            etag: HeaderValue::from_str(&etag).map_err(|_| Errno::INVAL)?,
            modified,
            last_modified: last_modified.and_then(|date| HeaderValue::from_str(&date).ok()),
            content,
        })
    }

    pub(super) fn validators(&self) -> Validators<'_> {
        Validators { etag: self.etag.as_bytes(), modified: self.modified }
    }

    /// Returns the content if it is in memory.
    pub(super) fn in_memory(&self) -> Option<&Bytes> {
        match &self.content {
            RepresentationContent::Memory(bytes) => Some(bytes),
            RepresentationContent::Disk(_) => None,
        }
    }

    /// Returns the bytes from `first` up to but not including `end`.
    pub(super) fn segment(&self, first: u64, end: u64) -> BodySegment {
        match &self.content {
            RepresentationContent::Memory(bytes) => {
                BodySegment::Memory(bytes.slice(first as usize..end as usize))
            }
            RepresentationContent::Disk(file) => {
                BodySegment::File { file: Arc::clone(file), offset: first, length: end - first }
            }
        }
    }

    /// Returns the whole content as segments.
    pub(super) fn all_segments(&self) -> VecDeque<BodySegment> {
        if let RepresentationContent::Disk(file) = &self.content {
            file.advise_sequential();
        }
        VecDeque::from([self.segment(0, self.length)])
    }

    fn cost(&self) -> usize {
        match &self.content {
            RepresentationContent::Memory(bytes) => bytes.len(),
            RepresentationContent::Disk(_) => OPEN_FILE_COST,
        }
    }
}
