//! `serve --watch`: changed files reload, once for each burst, and what is ignored does not.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::server::ProcessBuilder;
use crate::support::{Server, process, wait};

/// How long to observe that nothing happens: longer than it takes to notice a change.
const NOTHING_HAPPENS: Duration = Duration::from_millis(700);

/// For how long a change after a reload counts as one during it.
const AFTER_RELOAD: Duration = Duration::from_millis(600);

struct WatchedSite {
    server: Server,
    root: PathBuf,
}

impl WatchedSite {
    /// Starts a server that watches its root directory, which has the file `index.html`.
    fn start(prepare: impl FnOnce(ProcessBuilder) -> ProcessBuilder) -> WatchedSite {
        let builder = Server::builder();
        let root = builder.dir().join("public");
        fs::create_dir(&root).expect("directory");
        fs::write(root.join("index.html"), "<p>one").expect("file");
        let builder = builder.workers(1).other_workers(1).args(["--root", "public"]);
        let server = prepare(builder).start();
        server.wait_log(&["watching for changes"]);
        WatchedSite { server, root }
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.root.join(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        fs::write(path, text).expect("file");
    }

    fn generation(&self) -> u64 {
        self.server.status()["primary"]["generation"].as_u64().expect("a number")
    }

    #[track_caller]
    fn wait_reloaded(&self, generation: u64) {
        wait_reloaded(&self.server, generation);
    }

    /// Waits until at least this generation serves and no reload follows, and returns the generation.
    #[track_caller]
    fn wait_settled(&self, least: u64) -> u64 {
        wait::wait_until_some("the end of the reloads", || {
            let before = self.generation();
            wait::wait_for_duration(NOTHING_HAPPENS);
            (before >= least && self.generation() == before).then_some(before)
        })
    }

    #[track_caller]
    fn assert_no_reload(&self, generation: u64) {
        wait::wait_for_duration(NOTHING_HAPPENS);
        assert_eq!(self.generation(), generation);
    }
}

#[track_caller]
fn wait_reloaded(server: &Server, generation: u64) {
    wait::wait_until(&format!("generation {generation}"), || {
        server.try_status().is_some_and(|status| status["primary"]["generation"] == generation)
    });
    // A change that comes during a reload may be that of the program.
    wait::wait_for_duration(AFTER_RELOAD);
}

fn watcher_pid(server: &Server) -> u32 {
    let status = server.status();
    let workers = status["workers"].as_array().expect("workers");
    let watcher = workers.iter().find(|worker| worker["kind"] == "watcher").expect("a watcher");
    watcher["pid"].as_u64().expect("a pid") as u32
}

/// Returns how many directories the process watches.
fn watches(pid: u32) -> usize {
    let descriptors = process::descriptors(pid);
    let inotify = descriptors.iter().filter(|(_, target)| target.contains("inotify"));
    let info = inotify.map(|(fd, _)| fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")));
    info.flatten()
        .map(|text| text.lines().filter(|line| line.starts_with("inotify ")).count())
        .sum()
}

#[test]
fn a_burst_of_changes_is_one_reload_or_few_and_the_watcher_lives_over_it() {
    let site = WatchedSite::start(|builder| builder.args(["--watch"]));
    let watcher = watcher_pid(&site.server);
    site.write("index.html", "<p>two");
    site.wait_reloaded(2);
    for n in 0..500 {
        site.write(&format!("dir{}/{n}.html", n % 7), "<p>new");
    }
    let generation = site.wait_settled(3);
    // A pause of this thread ends a burst.
    assert!(generation < 13, "{} reloads of 500 changes", generation - 2);
    // In a directory that did not exist at the start.
    site.write("dir3/3.html", "<p>changed");
    site.wait_reloaded(generation + 1);
    assert_eq!(watcher_pid(&site.server), watcher);
    assert_eq!(site.server.get("/").text(), "<p>two");
    site.server.stop();
}

#[test]
fn files_that_are_renamed_and_directories_that_are_created_again_are_noticed() {
    let site = WatchedSite::start(|builder| builder.args(["--watch"]));
    site.write(".index.html.new", "<p>two");
    fs::rename(site.root.join(".index.html.new"), site.root.join("index.html")).expect("renamed");
    site.wait_reloaded(2);
    site.write("css/a.css", "a");
    site.wait_reloaded(3);
    fs::remove_dir_all(site.root.join("css")).expect("removed");
    site.wait_reloaded(4);
    site.write("css/a.css", "b");
    site.wait_reloaded(5);
    site.write("css/a.css", "c");
    site.wait_reloaded(6);
    fs::rename(site.root.join("css"), site.root.join("styles")).expect("renamed");
    site.wait_reloaded(7);
    site.write("styles/a.css", "d");
    site.wait_reloaded(8);
    // The whole root, in the middle of it all.
    fs::rename(&site.root, site.root.with_file_name("old")).expect("renamed");
    site.write("index.html", "<p>three");
    site.wait_reloaded(9);
    site.assert_no_reload(9);
    site.write("index.html", "<p>four");
    site.wait_reloaded(10);
    assert_eq!(site.server.get("/").text(), "<p>four");
    site.server.stop();
}

#[test]
fn ignored_files_do_not_reload_and_the_rules_may_change() {
    let site = WatchedSite::start(|builder| {
        fs::write(builder.dir().join("public/.gitignore"), "generated\n").expect("file");
        builder.args(["--watch", "--watch-ignore", "*.csv"])
    });
    for name in ["generated/a.js", "data.csv", "app.log", "node_modules/a/b.js", ".git/index"] {
        site.write(name, "new");
    }
    site.assert_no_reload(1);
    site.write(".gitignore", "node_modules\n");
    site.wait_reloaded(2);
    site.write("generated/a.js", "counts now");
    site.wait_reloaded(3);
    site.write("data.csv", "still ignored");
    site.assert_no_reload(3);
    site.server.stop();
}

#[test]
fn a_reload_that_fails_leaves_the_old_workers_and_the_next_change_is_tried() {
    let builder = Server::builder();
    let config = builder.dir().join("prefork.toml");
    let text = |workers: &str| {
        format!("bind = \"127.0.0.1:0\"\nwatch = [\"auto\"]\nworkers = {workers}\n")
    };
    let server = builder.config(1, &text("1")).other_workers(1).start();
    let server = server.allow_errors(&["reload failed"]);
    server.wait_log(&["watching for changes"]);
    let before = server.worker_pids();
    fs::write(&config, text("many")).expect("file");
    server.wait_log(&["reload failed"]);
    assert_eq!((server.worker_pids(), server.get("/healthz").status), (before, 200));
    fs::write(&config, text("2")).expect("file");
    server.wait_serving(3);
    server.stop();
}

#[test]
fn a_killed_watcher_is_replaced_and_reloads_as_it_may_have_missed_a_change() {
    let mut site = WatchedSite::start(|builder| builder.args(["--watch"]));
    site.server = site.server.allow_errors(&["SIGKILL"]);
    let first = watcher_pid(&site.server);
    process::send_signal(first, Signal::SIGKILL);
    site.wait_reloaded(2);
    let second = watcher_pid(&site.server);
    assert_ne!(first, second);
    assert!(watches(second) > 0);
    site.write("index.html", "<p>two");
    site.wait_reloaded(3);
    site.server.signal(Signal::SIGTERM);
    site.server.wait_clean_exit(0);
    process::wait_ended(&[second]);
}

#[test]
fn files_are_read_from_time_to_time_where_the_kernel_does_not_tell() {
    let builder = Server::builder();
    let root = builder.dir().join("public");
    fs::create_dir(&root).expect("directory");
    let args = ["--root", "public", "--watch", "public", "--watch-poll", "50ms"];
    let server = builder.workers(1).other_workers(1).args(args).start();
    server.wait_log(&["watching for changes"]);
    assert_eq!(watches(watcher_pid(&server)), 0);
    fs::write(root.join("a"), "1").expect("file");
    wait_reloaded(&server, 2);
    fs::write(root.join("a"), "22").expect("file");
    wait_reloaded(&server, 3);
    server.stop();
}

#[test]
fn what_cannot_be_watched_is_an_error_at_the_start() {
    for (args, piece) in [
        (&["--watch", "no/such/dir"][..], "watch = no/such/dir"),
        (&["--watch"], "watch = auto"),
        (&["--watch", ".", "--watch-ignore", "a["], "watch-ignore = a["),
    ] {
        let output = ProcessBuilder::serve().args(args.iter().copied()).run();
        assert_eq!(output.status, Some(78), "{output:?}");
        assert!(output.stderr.contains(piece), "{output:?}");
    }
}
