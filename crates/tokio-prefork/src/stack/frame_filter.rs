//! Which frames of a stack matter: the application's, and what they wait in; not the server below them.

use std::borrow::Cow;

use super::worker_stack::StackFrame;

/// Crates that are not the application. Their frames above the application's are shown, those below are not.
const RUNTIME_CRATES: [&str; 24] = [
    "alloc",
    "axum",
    "axum_core",
    "core",
    "futures_channel",
    "futures_core",
    "futures_executor",
    "futures_util",
    "h2",
    "http_body_util",
    "hyper",
    "hyper_util",
    "log",
    "matchit",
    "mio",
    "prefork_os",
    "std",
    "tokio",
    "tokio_prefork",
    "tokio_util",
    "tower",
    "tower_http",
    "tower_service",
    "tracing",
];

/// Crates and modules that call the application. The first such frame below it ends the visible part of a stack.
const CALLERS: [&str; 10] = [
    "axum::",
    "hyper::",
    "hyper_util::",
    "prefork_os::",
    "std::rt::",
    "std::sys::backtrace::__rust_begin_short_backtrace",
    "tokio::runtime::",
    "tokio::task::",
    "tokio_prefork::",
    "tower::",
];

/// Functions without a crate that start threads and programs.
const START_FUNCTIONS: [&str; 9] = [
    "_start",
    "main",
    "start_thread",
    "clone",
    "clone3",
    "__clone3",
    "__libc_start_main",
    "__rust_try",
    "__libc_start_call_main",
];

/// Returns how many of the frames, innermost first, are shown: up to the outermost frame of the application that the server
/// has called. `None` if no frame is the application's.
pub(super) fn application_frames(frames: &[StackFrame]) -> Option<usize> {
    let first = frames.iter().position(is_application)?;
    let below = frames[first..].iter().position(is_caller);
    let end = below.map_or(frames.len(), |below| first + below);
    let last = frames[first..end].iter().rposition(is_application)?;
    // `main`, which has started the server, is not what an idle thread runs.
    let outer = &frames[end..];
    let is_main = outer.iter().any(is_program_start) && !outer.iter().any(is_server);
    (!is_main).then_some(first + last + 1)
}

/// Returns whether a function is what calls `main` of the program.
fn is_program_start(frame: &StackFrame) -> bool {
    let path = path_of(frame).1;
    path.starts_with("std::rt::lang_start") || path == "main" || path == "_start"
}

fn is_server(frame: &StackFrame) -> bool {
    matches!(&*path_of(frame).0, "tokio_prefork" | "hyper" | "hyper_util")
}

/// Returns whether a frame tells an operator nothing: glue of the standard library between functions of the application,
/// or the inside of a waiting function of it.
pub(super) fn is_noise(frames: &[StackFrame], index: usize, frame: &StackFrame) -> bool {
    if is_application(frame) {
        return false;
    }
    if matches!(&*path_of(frame).0, "core" | "alloc") {
        return true;
    }
    if index == 0 {
        return false;
    }
    let first = frames.iter().position(is_application).unwrap_or(frames.len());
    // The function that the application has called stays: `std::thread::sleep`.
    index + 1 != first
}

fn is_application(frame: &StackFrame) -> bool {
    let (krate, name) = path_of(frame);
    match &*krate {
        "" => {
            let is_library = frame.module.contains(".so") || frame.module.starts_with('[');
            frame.function.is_some()
                && !is_library
                && !START_FUNCTIONS.contains(&name)
                && !is_libc_function(name)
        }
        krate => !RUNTIME_CRATES.contains(&krate),
    }
}

/// Returns whether a name without a crate is of a C library that is linked statically: what blocks is called so.
fn is_libc_function(name: &str) -> bool {
    const BLOCKING: [&str; 14] = [
        "syscall",
        "read",
        "write",
        "poll",
        "epoll_wait",
        "nanosleep",
        "clock_nanosleep",
        "recv",
        "recvfrom",
        "send",
        "sendto",
        "connect",
        "accept4",
        "fsync",
    ];
    name.starts_with("__") || BLOCKING.contains(&name)
}

fn is_caller(frame: &StackFrame) -> bool {
    let Some(function) = &frame.function else { return false };
    let path = strip_type_prefix(function);
    let is_named = CALLERS.iter().any(|caller| path.starts_with(caller));
    is_named || is_server(frame) || START_FUNCTIONS.contains(&path)
}

/// Returns the crate of the function (empty without one), and its whole path.
///
/// Debug information with line tables only has inlined functions without their path: the source file tells the crate then.
fn path_of(frame: &StackFrame) -> (Cow<'_, str>, &str) {
    let Some(function) = &frame.function else { return (Cow::Borrowed(""), "") };
    let path = strip_type_prefix(function);
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(path.len());
    if path[end..].starts_with("::") {
        return (Cow::Borrowed(&path[..end]), path);
    }
    let of_file =
        frame.file.as_deref().filter(|file| file.ends_with(".rs")).and_then(crate_of_file);
    (Cow::Owned(of_file.unwrap_or_default()), path)
}

/// Returns the crate of `/rustc/HASH/library/core/src/x.rs` and of `.../registry/src/INDEX/tokio-1.54.1/src/x.rs`: the name of the
/// directory around `src`, without the version.
fn crate_of_file(file: &str) -> Option<String> {
    let directory = file.rsplit_once("/src/")?.0.rsplit('/').next()?;
    let is_version = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    let name = directory.rsplit_once('-').filter(|parts| is_version(parts.1)).map(|parts| parts.0);
    Some(name.unwrap_or(directory).replace('-', "_"))
}

/// Returns the path of the type in `<&mut a::B as c::D>::e`; other names as they are.
fn strip_type_prefix(function: &str) -> &str {
    let mut rest = function;
    loop {
        let shorter = ["<", "&", "*const ", "*mut ", "mut ", "dyn ", "impl ", "[", "("]
            .iter()
            .find_map(|prefix| rest.strip_prefix(prefix));
        match shorter {
            Some(shorter) => rest = shorter,
            None => return rest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str, module: &str) -> StackFrame {
        let function = Some(function.to_string());
        StackFrame { function, module: module.to_string(), repeats: 1, ..StackFrame::default() }
    }

    #[test]
    fn the_crate_of_a_method_is_that_of_its_type() {
        let of = |name: &str| path_of(&frame(name, "app")).0.to_string();
        assert_eq!(of("app::routes::fib"), "app");
        assert_eq!(of("<&mut app::Routes as tower_service::Service<R>>::call"), "app");
        assert_eq!(of("<dyn core::future::Future>::poll"), "core");
        assert_eq!(of("sqlite3_step"), "");
    }

    #[test]
    fn the_crate_of_an_inlined_function_without_a_path_is_that_of_its_file() {
        let crate_of = |file: &str| {
            let file = Some(file.to_string());
            path_of(&StackFrame { file, ..frame("{closure#0}", "app") }).0.to_string()
        };
        assert_eq!(crate_of("/rustc/5980/library/core/src/future/future.rs"), "core");
        assert_eq!(
            crate_of("/r/registry/src/index-1949/tokio-1.54.1/src/runtime/task.rs"),
            "tokio"
        );
        assert_eq!(
            crate_of("/home/me/tokio-prefork/crates/tokio-prefork/src/x.rs"),
            "tokio_prefork"
        );
        assert_eq!(crate_of("/home/me/my-app/src/main.rs"), "my_app");
        assert_eq!(crate_of("sqlite3.c"), "");
    }

    #[test]
    fn c_functions_of_the_program_are_the_application_and_those_of_libraries_are_not() {
        assert!(is_application(&frame("sqlite3_step", "app")));
        assert!(!is_application(&frame("read", "libc.so.6")));
        assert!(!is_application(&frame("_start", "app")));
        assert!(!is_application(&frame("clock_nanosleep", "static-app")));
    }

    #[test]
    fn a_runtime_that_the_application_has_started_itself_stays_visible_above_it() {
        let names = [
            "epoll_wait",
            "tokio::runtime::io::Driver::turn",
            "tokio::runtime::Runtime::block_on",
            "app::blocking_client",
            "app::handler",
            "tokio_prefork::worker::handle",
            "app::main",
        ];
        let frames: Vec<_> = names.iter().map(|name| frame(name, "app")).collect();
        assert_eq!(application_frames(&frames), Some(5));
    }

    #[test]
    fn a_thread_with_only_main_of_the_program_runs_no_request() {
        let names = ["epoll_wait", "tokio_prefork::worker::run", "app::main", "main", "_start"];
        let frames: Vec<_> = names.iter().map(|name| frame(name, "app")).collect();
        assert_eq!(application_frames(&frames), None);
    }
}
