//! Serves the files of a directory (`--root`).
//!
//! A request is answered on the event loop if all it needs is in memory (the cache, the kernel's directory and page
//! caches), and with the help of tokio's blocking pool if the disk is needed.
//!
//! ```text
//! request_path   path of the request -> path of the file, hidden names, redirects
//! root_dir       the root; lookups that cannot leave it
//! open_file      regular files only, reads that do not wait
//! entry, cache   what is known of a file, for less than a second
//! conditional, ranges, accept_encoding, content_type   what the response is to be
//! response, body   the response
//! overlay_tag      the script of the overlay, for development
//! ```

mod accept_encoding;
mod body;
mod cache;
mod conditional;
mod content_type;
mod entry;
mod open_file;
mod overlay_tag;
mod ranges;
mod request_path;
mod response;
mod root_dir;

use std::borrow::Cow;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use rustix::io::Errno;

pub(super) use body::FileBody;
use cache::FileCache;
use entry::{FileEntry, LoadedPath};
use open_file::OpenFileLimit;
pub(crate) use overlay_tag::OverlayTag;
use request_path::PathError;
use root_dir::DiskWait;
pub(crate) use root_dir::RootDir;

/// How long a lookup on the disk may take before the client gets a 503.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds between two log lines about refused system calls.
const LOG_INTERVAL_SECONDS: u64 = 10;

/// Settings of the file server.
#[derive(Debug, Clone)]
pub(crate) struct FileServerConfig {
    /// The root directory.
    pub(crate) root: Arc<RootDir>,
    /// File, relative to the root, that is served for paths that do not exist.
    pub(crate) fallback: Option<PathBuf>,
    /// File, relative to the root, that is the body of a 404.
    pub(crate) error_page_404: Option<PathBuf>,
    /// Value of `Cache-Control` for files.
    pub(crate) cache_control: Option<hyper::http::HeaderValue>,
    /// Whether names with a leading dot are served.
    pub(crate) dotfiles: bool,
    /// The script element that HTML documents get, during development.
    pub(crate) overlay_tag: OverlayTag,
}

/// File server of one process, or of one thread if each thread has its own service.
#[derive(Clone)]
pub(super) struct StaticFiles(Arc<FileServer>);

struct FileServer {
    settings: FileServerConfig,
    /// Normalized paths of the fallback and of the error page.
    fallback: Option<Vec<u8>>,
    error_page: Option<Vec<u8>>,
    cache: Arc<FileCache>,
    limit: Arc<OpenFileLimit>,
    logged_at: AtomicU64,
}

/// The result of looking up a path, before conditions and ranges apply.
enum LookupOutcome {
    File(Arc<FileEntry>),
    /// A 404 with this file as its body.
    ErrorPage(Arc<FileEntry>),
    /// A directory at this path, without a slash at its end.
    Directory(Vec<u8>),
    Status(StatusCode),
}

/// Why there is no file at a path.
#[derive(Clone, Copy)]
enum NotFoundReason {
    /// Nothing that can be served: 404.
    Nothing,
    /// A directory without an index: 403, as in nginx.
    NoIndex,
    /// The file cannot be opened.
    Refused(StatusCode),
}

/// A request that needs the disk.
pub(super) struct PendingLookup {
    path: Vec<u8>,
    request_parts: OwnedRequestParts,
}

/// The parts of a request that outlive it.
struct OwnedRequestParts {
    method: Method,
    query: Option<String>,
    headers: HeaderMap,
}

impl StaticFiles {
    pub(super) fn new(settings: FileServerConfig) -> StaticFiles {
        let absolute = |page: &PathBuf| {
            [b"/", page.strip_prefix("/").unwrap_or(page).as_os_str().as_bytes()].concat()
        };
        StaticFiles(Arc::new(FileServer {
            fallback: settings.fallback.as_ref().map(absolute),
            error_page: settings.error_page_404.as_ref().map(absolute),
            settings,
            cache: Arc::default(),
            limit: OpenFileLimit::for_process(),
            logged_at: AtomicU64::new(0),
        }))
    }

    /// Answers `request`, or returns what is left to do if that needs the disk. `reserved` answers for paths that are no
    /// files, and is given the normalized path.
    pub(super) fn try_respond_without_disk<B>(
        &self,
        request: &Request<B>,
        reserved: impl FnOnce(&[u8]) -> Option<(StatusCode, &'static str)>,
    ) -> Result<Response<FileBody>, Box<PendingLookup>> {
        let request_parts = response::FileRequest {
            method: request.method(),
            query: request.uri().query(),
            headers: request.headers(),
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Ok(response::method_not_allowed_response());
        }
        let path = match request_path::normalize_path(request.uri().path()) {
            Ok(path) => path,
            Err(PathError::Malformed) => {
                return Ok(response::status_response(StatusCode::BAD_REQUEST));
            }
            // Treated like a path that does not exist, so that the fallback and the error page apply.
            Err(PathError::Impossible) => Cow::Borrowed(&b"/\0"[..]),
        };
        if let Some((status, text)) = reserved(&path) {
            return Ok(response::text_response(status, text));
        }
        match self.0.resolve_path(&path, DiskWait::Never) {
            Some(outcome) => Ok(self.0.respond(outcome, &request_parts)),
            None => Err(Box::new(PendingLookup {
                path: path.into_owned(),
                request_parts: OwnedRequestParts {
                    method: request.method().clone(),
                    query: request.uri().query().map(str::to_string),
                    headers: request.headers().clone(),
                },
            })),
        }
    }

    /// Answers a request that needs the disk.
    pub(super) fn respond_from_disk(
        &self,
        pending: Box<PendingLookup>,
    ) -> impl Future<Output = Response<FileBody>> + Send + use<> {
        let server = Arc::clone(&self.0);
        async move {
            let PendingLookup { path, request_parts } = *pending;
            let lookup_server = Arc::clone(&server);
            let mut lookup = tokio::task::spawn_blocking(move || {
                lookup_server.resolve_path(&path, DiskWait::Allowed)
            });
            let outcome = match tokio::time::timeout(DISK_TIMEOUT, &mut lookup).await {
                Ok(Ok(Some(outcome))) => outcome,
                Ok(Ok(None)) => LookupOutcome::Status(StatusCode::SERVICE_UNAVAILABLE),
                // The lookup panicked, or the runtime is shutting down.
                Ok(Err(_)) => LookupOutcome::Status(StatusCode::INTERNAL_SERVER_ERROR),
                Err(_) => {
                    // One that has not begun never does.
                    lookup.abort();
                    server.log_rate_limited(
                        "a lookup took too long: the disk does not answer in time",
                    );
                    LookupOutcome::Status(StatusCode::SERVICE_UNAVAILABLE)
                }
            };
            let OwnedRequestParts { method, query, headers } = &request_parts;
            let request_parts = response::FileRequest { method, query: query.as_deref(), headers };
            server.respond(outcome, &request_parts)
        }
    }
}

impl FileServer {
    /// Looks up the normalized `path`; `None` if that needs the disk and may not wait for it.
    fn resolve_path(&self, path: &[u8], wait: DiskWait) -> Option<LookupOutcome> {
        let is_hidden = !self.settings.dotfiles && request_path::is_hidden_path(path);
        let found =
            if is_hidden { Err(NotFoundReason::Nothing) } else { self.find_file(path, wait)? };
        let missing = match found {
            Ok(outcome) => return Some(outcome),
            Err(missing) => missing,
        };
        if matches!(missing, NotFoundReason::Nothing | NotFoundReason::NoIndex)
            && let Some(fallback) = &self.fallback
        {
            match self.find_file(fallback, wait)? {
                Ok(LookupOutcome::File(entry)) => return Some(LookupOutcome::File(entry)),
                Err(NotFoundReason::Refused(status)) => return Some(LookupOutcome::Status(status)),
                Ok(_) | Err(_) => {}
            }
        }
        if matches!(missing, NotFoundReason::Nothing)
            && let Some(page) = &self.error_page
            && let Ok(LookupOutcome::File(entry)) = self.find_file(page, wait)?
        {
            return Some(LookupOutcome::ErrorPage(entry));
        }
        Some(LookupOutcome::Status(match missing {
            NotFoundReason::Nothing => StatusCode::NOT_FOUND,
            NotFoundReason::NoIndex => StatusCode::FORBIDDEN,
            NotFoundReason::Refused(status) => status,
        }))
    }

    /// Returns the entry at `path`, or why there is none.
    fn find_file(
        &self,
        path: &[u8],
        wait: DiskWait,
    ) -> Option<Result<LookupOutcome, NotFoundReason>> {
        if path.contains(&0) {
            return Some(Err(NotFoundReason::Nothing));
        }
        if let Some(entry) = self.cache.get(path, Instant::now(), wait) {
            return Some(Ok(LookupOutcome::File(entry)));
        }
        let loaded = entry::load_entry(&self.settings.root, path, &self.limit, wait);
        if !matches!(loaded, Ok(LoadedPath::File(_)) | Err(Errno::AGAIN)) {
            // Others would go on using what was there for a moment.
            self.cache.remove(path);
        }
        Some(match loaded {
            Ok(LoadedPath::File(entry)) => {
                self.cache.insert(path, &entry);
                Ok(LookupOutcome::File(entry))
            }
            Err(Errno::AGAIN) if wait == DiskWait::Never => return None,
            Ok(LoadedPath::Directory(path)) => Ok(LookupOutcome::Directory(path)),
            Ok(LoadedPath::NoIndex) => Err(NotFoundReason::NoIndex),
            Err(errno) => Err(self.classify_error(path, errno)),
        })
    }

    /// Returns the response status for `errno`.
    fn classify_error(&self, path: &[u8], errno: Errno) -> NotFoundReason {
        match errno {
            Errno::NOENT
            | Errno::NOTDIR
            | Errno::LOOP
            | Errno::NAMETOOLONG
            | Errno::XDEV
            | Errno::INVAL
            | Errno::ILSEQ
            | Errno::NXIO
            | Errno::NODEV => NotFoundReason::Nothing,
            Errno::ACCESS | Errno::PERM => NotFoundReason::Refused(StatusCode::FORBIDDEN),
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::STALE => {
                // Its descriptors are better used for responses.
                self.cache.clear();
                self.log_rate_limited(format_args!(
                    "cannot open a file: {errno}; answered with 503"
                ));
                NotFoundReason::Refused(StatusCode::SERVICE_UNAVAILABLE)
            }
            _ => {
                self.log_rate_limited(format_args!(
                    "cannot open {:?}: {errno}",
                    path.escape_ascii().to_string()
                ));
                NotFoundReason::Refused(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }

    fn respond(
        &self,
        outcome: LookupOutcome,
        request_parts: &response::FileRequest<'_>,
    ) -> Response<FileBody> {
        match outcome {
            LookupOutcome::File(entry) => {
                self.cache.schedule_purge();
                let with_tag = self.settings.overlay_tag.html_response(&entry, StatusCode::OK);
                with_tag.unwrap_or_else(|| {
                    let cache_control = self.settings.cache_control.as_ref();
                    response::file_response(&entry, request_parts, cache_control)
                })
            }
            LookupOutcome::ErrorPage(entry) => {
                self.cache.schedule_purge();
                let tag = &self.settings.overlay_tag;
                let with_tag = tag.html_response(&entry, StatusCode::NOT_FOUND);
                with_tag.unwrap_or_else(|| response::error_page_response(&entry, request_parts))
            }
            LookupOutcome::Directory(path) => {
                match request_path::directory_location(&path, request_parts.query) {
                    Some(location) => response::redirect_response(location),
                    None => response::status_response(StatusCode::NOT_FOUND),
                }
            }
            LookupOutcome::Status(status) => response::status_response(status),
        }
    }

    /// Logs a warning, but only one in [`LOG_INTERVAL_SECONDS`] seconds: clients could make it many.
    fn log_rate_limited(&self, what: impl std::fmt::Display) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let last = self.logged_at.load(Ordering::Relaxed);
        if now.abs_diff(last) >= LOG_INTERVAL_SECONDS {
            self.logged_at.store(now, Ordering::Relaxed);
            log::warn!("{what}");
        }
    }
}
