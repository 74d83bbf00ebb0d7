//! Learns from the kernel when files may have changed; reads the tree from time to time where the kernel does not tell.
//!
//! Each directory has a watch of its own, so that `target` and `node_modules` cost none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statfs::{self, FsType};
use notify::event::ModifyKind;
use notify::{ErrorKind, Event, EventKind, INotifyWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};

use super::file_tree::DirId;

/// How often to read the tree where the kernel does not tell about changes.
const FALLBACK_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// File systems whose other users, such as the host of a container, change files without the kernel noticing.
/// 9p, VirtualBox's and those of FUSE have no constants in nix.
const SILENT_FILE_SYSTEMS: [i64; 6] =
    [0x6969, 0x0102_1997, 0x6573_5546, 0x786f_4256, 0xff53_4d42, 0xfe53_4d42];

/// A sign that files may have changed.
#[derive(Debug)]
pub(crate) enum Hint {
    /// The kernel says so.
    Event(Event),
    /// Events were lost.
    Overflow,
    /// It is time to read the tree.
    PollTimer,
}

/// Watches directories.
pub(crate) struct FileWatcher {
    inotify: Option<INotifyWatcher>,
    hints: mpsc::UnboundedReceiver<Hint>,
    poll_timer: Option<Interval>,
    watched: BTreeMap<PathBuf, DirId>,
}

impl FileWatcher {
    /// Creates a watcher, which reads the tree every `poll_interval` if one is given.
    pub(crate) fn new(poll_interval: Option<Duration>, roots: &[PathBuf]) -> FileWatcher {
        let (sender, hints) = mpsc::unbounded_channel();
        let mut watcher =
            FileWatcher { inotify: None, hints, poll_timer: None, watched: BTreeMap::new() };
        if let Some(interval) = poll_interval {
            watcher.poll_every(interval);
            return watcher;
        }
        let send_hint = move |result: notify::Result<Event>| {
            let hint = match result {
                Ok(event) if event.need_rescan() => Hint::Overflow,
                Ok(event) if matches!(event.kind, EventKind::Access(_)) => return,
                Ok(event) => Hint::Event(event),
                Err(_) => Hint::Overflow,
            };
            // Without a receiver the process ends.
            let _ = sender.send(hint);
        };
        match INotifyWatcher::new(send_hint, notify::Config::default()) {
            Ok(inotify) => watcher.inotify = Some(inotify),
            Err(e) => watcher.fall_back_to_polling(&e),
        }
        if let Some(root) = roots.iter().find(|root| is_on_silent_file_system(root)) {
            log::warn!(
                "{} is on a file system that does not tell about changes made elsewhere: reading it every second as well",
                root.display()
            );
            watcher.poll_every(FALLBACK_POLL_INTERVAL);
        }
        watcher
    }

    fn poll_every(&mut self, interval: Duration) {
        let mut timer = tokio::time::interval(interval);
        // Reading a large tree may take longer than the interval.
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.poll_timer = Some(timer);
    }

    fn fall_back_to_polling(&mut self, error: &notify::Error) {
        let advice = match error.kind {
            ErrorKind::MaxFilesWatch => {
                "; raise the limit: sysctl fs.inotify.max_user_watches=524288, or watch less"
            }
            _ => "",
        };
        log::warn!(
            "cannot watch the files by inotify: {error}: reading them every second instead{advice}"
        );
        self.inotify = None;
        self.watched.clear();
        self.poll_every(FALLBACK_POLL_INTERVAL);
    }

    /// Waits for a sign that files may have changed.
    pub(crate) async fn next_hint(&mut self) -> Hint {
        let poll_timer = &mut self.poll_timer;
        let poll = async {
            match poll_timer {
                Some(timer) => drop(timer.tick().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(hint) = self.hints.recv() => hint,
            () = poll => Hint::PollTimer,
        }
    }

    /// Stops watching directories that an event has moved or removed: their paths may stand for others now.
    pub(crate) fn forget_moved(&mut self, hint: &Hint) {
        match hint {
            Hint::Event(event) if is_move_or_removal(&event.kind) => {
                event.paths.iter().for_each(|path| self.unwatch_below(path));
            }
            Hint::Overflow => self.unwatch_below(Path::new("/")),
            Hint::Event(_) | Hint::PollTimer => {}
        }
    }

    fn unwatch_below(&mut self, path: &Path) {
        let is_below = |dir: &PathBuf| path == Path::new("/") || dir.starts_with(path);
        let below: Vec<PathBuf> =
            self.watched.keys().filter(|dir| is_below(dir)).cloned().collect();
        below.iter().for_each(|dir| self.unwatch(dir));
    }

    fn unwatch(&mut self, dir: &Path) {
        self.watched.remove(dir);
        if let Some(inotify) = &mut self.inotify {
            // The watch of a directory that is gone is gone, too.
            let _ = inotify.unwatch(dir);
        }
    }

    /// Watches exactly these directories. Returns whether some are new: files may have been created in them before.
    pub(crate) fn watch_dirs(&mut self, dirs: &BTreeMap<PathBuf, DirId>) -> bool {
        if self.inotify.is_none() {
            return false;
        }
        let is_stale = |(dir, id): &(&PathBuf, &DirId)| dirs.get(*dir) != Some(*id);
        let stale: Vec<PathBuf> =
            self.watched.iter().filter(is_stale).map(|(dir, _)| dir.clone()).collect();
        stale.iter().for_each(|dir| self.unwatch(dir));
        let mut has_new = false;
        for (dir, id) in dirs {
            if self.watched.contains_key(dir) {
                continue;
            }
            let Some(inotify) = &mut self.inotify else { return has_new };
            match inotify.watch(dir, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(dir.clone(), *id);
                    has_new = true;
                }
                // Gone again; the event for it is on its way.
                Err(_) if !dir.is_dir() => {}
                Err(e) => {
                    self.fall_back_to_polling(&e);
                    return has_new;
                }
            }
        }
        has_new
    }
}

/// Returns whether an event moves or removes the files that it names.
pub(crate) fn is_move_or_removal(kind: &EventKind) -> bool {
    matches!(kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)))
}

fn is_on_silent_file_system(path: &Path) -> bool {
    let Ok(found) = statfs::statfs(path) else { return false };
    let FsType(kind) = found.filesystem_type();
    // 32 bits, whatever the width and the sign of the type of this architecture and C library.
    #[allow(clippy::unnecessary_cast, reason = "the type differs")]
    let kind = kind as i64 & 0xffff_ffff;
    SILENT_FILE_SYSTEMS.contains(&kind)
}
