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
//! ```

mod accept_encoding;
mod body;
mod cache;
mod conditional;
mod content_type;
mod entry;
mod open_file;
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
use cache::Cache;
use entry::{FileEntry, Loaded};
use open_file::OpenFileLimit;
use request_path::PathError;
pub(crate) use root_dir::RootDir;
use root_dir::Wait;

/// How long a lookup on the disk may take before the client gets 503.
const DISK_TIMEOUT: Duration = Duration::from_secs(10);
/// Seconds between two log lines about what the system refuses.
const LOG_INTERVAL: u64 = 10;

/// What the file server was told.
#[derive(Debug, Clone)]
pub(crate) struct FileServerConfig {
    /// The directory.
    pub(crate) root: Arc<RootDir>,
    /// The file, relative to the root, that answers for paths that do not exist.
    pub(crate) fallback: Option<PathBuf>,
    /// The file, relative to the root, that is the body of a 404.
    pub(crate) error_page_404: Option<PathBuf>,
    /// The value of `Cache-Control` of files.
    pub(crate) cache_control: Option<hyper::http::HeaderValue>,
    /// Whether names with a leading dot are served.
    pub(crate) dotfiles: bool,
}

/// The file server of one process, or one thread where each has a service of its own.
#[derive(Clone)]
pub(super) struct StaticFiles(Arc<Shared>);

struct Shared {
    settings: FileServerConfig,
    /// Normalized paths of the fallback and of the error page.
    fallback: Option<Vec<u8>>,
    error_page: Option<Vec<u8>>,
    cache: Arc<Cache>,
    limit: Arc<OpenFileLimit>,
    logged_at: AtomicU64,
}

/// How a request is answered, before its conditions and ranges are looked at.
enum Outcome {
    File(Arc<FileEntry>),
    /// A 404 with this file as its body.
    ErrorPage(Arc<FileEntry>),
    /// A directory at this path, without a slash at its end.
    Directory(Vec<u8>),
    Status(StatusCode),
}

/// Why there is no file at a path.
#[derive(Clone, Copy)]
enum Missing {
    /// There is nothing that can be served: 404.
    Nothing,
    /// A directory without an index: 403, as in nginx.
    NoIndex,
    /// There may be something, but it cannot be opened.
    Refused(StatusCode),
}

/// A request that needs the disk.
pub(super) struct Pending {
    path: Vec<u8>,
    question: Question,
}

/// What is kept of a request.
struct Question {
    method: Method,
    query: Option<String>,
    headers: HeaderMap,
}

impl StaticFiles {
    pub(super) fn new(settings: FileServerConfig) -> StaticFiles {
        let absolute = |page: &PathBuf| {
            [b"/", page.strip_prefix("/").unwrap_or(page).as_os_str().as_bytes()].concat()
        };
        StaticFiles(Arc::new(Shared {
            fallback: settings.fallback.as_ref().map(absolute),
            error_page: settings.error_page_404.as_ref().map(absolute),
            settings,
            cache: Arc::default(),
            limit: OpenFileLimit::of_process(),
            logged_at: AtomicU64::new(0),
        }))
    }

    /// Answers `request`, or says what is left to do if that needs the disk. `reserved` answers for paths that are no
    /// files, and is given the normalized path.
    pub(super) fn answer_now<B>(
        &self,
        request: &Request<B>,
        reserved: impl FnOnce(&[u8]) -> Option<(StatusCode, &'static str)>,
    ) -> Result<Response<FileBody>, Box<Pending>> {
        let question = response::Question {
            method: request.method(),
            query: request.uri().query(),
            headers: request.headers(),
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Ok(response::method_not_allowed());
        }
        let path = match request_path::normalize(request.uri().path()) {
            Ok(path) => path,
            Err(PathError::Malformed) => return Ok(response::status(StatusCode::BAD_REQUEST)),
            // As a path that does not exist, so that the fallback and the error page count.
            Err(PathError::Impossible) => Cow::Borrowed(&b"/\0"[..]),
        };
        if let Some((status, text)) = reserved(&path) {
            return Ok(response::text(status, text));
        }
        match self.0.resolve(&path, Wait::Never) {
            Some(outcome) => Ok(self.0.respond(outcome, &question)),
            None => Err(Box::new(Pending {
                path: path.into_owned(),
                question: Question {
                    method: request.method().clone(),
                    query: request.uri().query().map(str::to_string),
                    headers: request.headers().clone(),
                },
            })),
        }
    }

    /// Answers what needs the disk.
    pub(super) fn answer_later(
        &self,
        pending: Box<Pending>,
    ) -> impl Future<Output = Response<FileBody>> + Send + use<> {
        let shared = Arc::clone(&self.0);
        async move {
            let Pending { path, question } = *pending;
            let on_disk = Arc::clone(&shared);
            let mut lookup =
                tokio::task::spawn_blocking(move || on_disk.resolve(&path, Wait::Allowed));
            let outcome = match tokio::time::timeout(DISK_TIMEOUT, &mut lookup).await {
                Ok(Ok(Some(outcome))) => outcome,
                Ok(Ok(None)) => Outcome::Status(StatusCode::SERVICE_UNAVAILABLE),
                // It panicked, or the runtime ends.
                Ok(Err(_)) => Outcome::Status(StatusCode::INTERNAL_SERVER_ERROR),
                Err(_) => {
                    // One that has not begun never does.
                    lookup.abort();
                    shared.log("a lookup took too long: the disk does not answer in time");
                    Outcome::Status(StatusCode::SERVICE_UNAVAILABLE)
                }
            };
            let Question { method, query, headers } = &question;
            let question = response::Question { method, query: query.as_deref(), headers };
            shared.respond(outcome, &question)
        }
    }
}

impl Shared {
    /// Finds what the normalized `path` is answered with; `None` if that needs the disk and may not wait for it.
    fn resolve(&self, path: &[u8], wait: Wait) -> Option<Outcome> {
        let is_hidden = !self.settings.dotfiles && request_path::is_hidden(path);
        let found = if is_hidden { Err(Missing::Nothing) } else { self.find(path, wait)? };
        let missing = match found {
            Ok(outcome) => return Some(outcome),
            Err(missing) => missing,
        };
        if matches!(missing, Missing::Nothing | Missing::NoIndex)
            && let Some(fallback) = &self.fallback
        {
            match self.find(fallback, wait)? {
                Ok(Outcome::File(entry)) => return Some(Outcome::File(entry)),
                Err(Missing::Refused(status)) => return Some(Outcome::Status(status)),
                Ok(_) | Err(_) => {}
            }
        }
        if matches!(missing, Missing::Nothing)
            && let Some(page) = &self.error_page
            && let Ok(Outcome::File(entry)) = self.find(page, wait)?
        {
            return Some(Outcome::ErrorPage(entry));
        }
        Some(Outcome::Status(match missing {
            Missing::Nothing => StatusCode::NOT_FOUND,
            Missing::NoIndex => StatusCode::FORBIDDEN,
            Missing::Refused(status) => status,
        }))
    }

    /// What is at `path`, or why there is nothing.
    fn find(&self, path: &[u8], wait: Wait) -> Option<Result<Outcome, Missing>> {
        if path.contains(&0) {
            return Some(Err(Missing::Nothing));
        }
        if let Some(entry) = self.cache.get(path, Instant::now(), wait) {
            return Some(Ok(Outcome::File(entry)));
        }
        let loaded = entry::load(&self.settings.root, path, &self.limit, wait);
        if !matches!(loaded, Ok(Loaded::File(_)) | Err(Errno::AGAIN)) {
            // Others would go on using what was there for a moment.
            self.cache.remove(path);
        }
        Some(match loaded {
            Ok(Loaded::File(entry)) => {
                self.cache.insert(path, &entry);
                Ok(Outcome::File(entry))
            }
            Err(Errno::AGAIN) if wait == Wait::Never => return None,
            Ok(Loaded::Directory(path)) => Ok(Outcome::Directory(path)),
            Ok(Loaded::NoIndex) => Err(Missing::NoIndex),
            Err(errno) => Err(self.refusal(path, errno)),
        })
    }

    /// What the client is told of `errno`.
    fn refusal(&self, path: &[u8], errno: Errno) -> Missing {
        match errno {
            Errno::NOENT
            | Errno::NOTDIR
            | Errno::LOOP
            | Errno::NAMETOOLONG
            | Errno::XDEV
            | Errno::INVAL
            | Errno::ILSEQ
            | Errno::NXIO
            | Errno::NODEV => Missing::Nothing,
            Errno::ACCESS | Errno::PERM => Missing::Refused(StatusCode::FORBIDDEN),
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN | Errno::STALE => {
                // Its descriptors are better used for responses.
                self.cache.clear();
                self.log(format_args!("cannot open a file: {errno}; answered with 503"));
                Missing::Refused(StatusCode::SERVICE_UNAVAILABLE)
            }
            _ => {
                self.log(format_args!(
                    "cannot open {:?}: {errno}",
                    path.escape_ascii().to_string()
                ));
                Missing::Refused(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }

    fn respond(&self, outcome: Outcome, question: &response::Question<'_>) -> Response<FileBody> {
        match outcome {
            Outcome::File(entry) => {
                self.cache.purge_later();
                let cache_control = self.settings.cache_control.as_ref();
                response::file(&entry, question, cache_control)
            }
            Outcome::ErrorPage(entry) => {
                self.cache.purge_later();
                response::error_page(&entry, question)
            }
            Outcome::Directory(path) => {
                match request_path::directory_location(&path, question.query) {
                    Some(location) => response::redirect(location),
                    None => response::status(StatusCode::NOT_FOUND),
                }
            }
            Outcome::Status(status) => response::status(status),
        }
    }

    /// Logs a warning, but only one in [`LOG_INTERVAL`] seconds: clients could make it many.
    fn log(&self, what: impl std::fmt::Display) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let last = self.logged_at.load(Ordering::Relaxed);
        if now.abs_diff(last) >= LOG_INTERVAL {
            self.logged_at.store(now, Ordering::Relaxed);
            log::warn!("{what}");
        }
    }
}
