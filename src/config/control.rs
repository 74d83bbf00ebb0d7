//! Where operators ask: the setting of the control socket.

use std::path::PathBuf;

/// Where the primary listens for `prefork status` and the other verbs (see [`crate::control`]).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ControlSocket {
    /// Nowhere. The default of the library: it opens no socket that nobody asked for.
    #[default]
    Off,
    /// `prefork-PID.sock` in the runtime directory, where the `prefork` command finds it. The default of
    /// `prefork serve`.
    Auto,
    /// At this path. A dead socket there is replaced, a live one never touched.
    Path(PathBuf),
}

pub(super) fn read(text: &str) -> Result<ControlSocket, String> {
    match text.trim() {
        "" => Err("is empty: give a path, auto or off".to_string()),
        "off" => Ok(ControlSocket::Off),
        "auto" => Ok(ControlSocket::Auto),
        // The longest name that fits a socket address, with the zero that ends it.
        path if path.len() > 107 => {
            Err("is too long: the path of a socket has at most 107 bytes".to_string())
        }
        path if path.contains('\0') => Err("is not a path: give one without a zero".to_string()),
        path => Ok(ControlSocket::Path(PathBuf::from(path))),
    }
}

pub(super) fn show(control: &ControlSocket) -> String {
    match control {
        ControlSocket::Off => "off".to_string(),
        ControlSocket::Auto => "auto".to_string(),
        ControlSocket::Path(path) => path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_shown_as_it_was_read() {
        for text in ["off", "auto", "/run/prefork.sock", "./off"] {
            assert_eq!(show(&read(text).expect(text)), text);
        }
        assert!(read("").is_err() && read(&"x".repeat(108)).is_err() && read("a\0b").is_err());
    }
}
