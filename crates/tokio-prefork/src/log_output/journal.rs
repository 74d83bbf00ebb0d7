//! Recognizes systemd's journal at the other end of standard error.

use std::io;

use nix::sys::stat::fstat;

/// Returns whether standard error is the journal.
pub(super) fn is_stderr_journal() -> bool {
    is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref(), stderr_identity())
}

/// Returns whether stderr is the stream that systemd announced as `DEVICE:INODE` in `JOURNAL_STREAM`.
///
/// The variable alone is not enough: processes whose stderr was redirected inherit it too.
fn is_journal(announced: Option<&str>, stderr: Option<(u64, u64)>) -> bool {
    let parse = |text: &str| {
        let (device, inode) = text.split_once(':')?;
        Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
    };
    matches!((announced.and_then(parse), stderr), (Some(a), Some(b)) if a == b)
}

fn stderr_identity() -> Option<(u64, u64)> {
    fstat(io::stderr()).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journal_is_recognised_by_device_and_inode() {
        assert!(is_journal(Some("9:12345"), Some((9, 12345))));
        for (announced, stderr) in [
            (Some("9:12345"), Some((9, 1))),
            (Some("9:12345"), None),
            (Some("nonsense"), Some((9, 12345))),
            (Some("9:"), Some((9, 0))),
            (None, Some((9, 12345))),
        ] {
            assert!(!is_journal(announced, stderr), "{announced:?}");
        }
        assert!(stderr_identity().is_some());
    }
}
