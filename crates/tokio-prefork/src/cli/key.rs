//! Configuration keys: their names, help and types, and the list of all keys of a program.

use super::app_keys::AppKeys;
use super::configured_value::{ConfiguredValue, ValueError};
use super::environment::own_var;
use super::field::Field;
use super::server_keys::SERVER_KEYS;

/// A key of the configuration, whose value goes into a field of `T`: a flag, an environment variable and a key of the
/// TOML file.
///
/// The library's own keys fill a [`Config`](crate::Config); an application adds its own by [`AppKeys`].
pub struct Key<T: 'static> {
    pub(super) name: &'static str,
    pub(super) short: Option<char>,
    pub(super) heading: &'static str,
    pub(super) field: Field<T>,
    pub(super) aliases: &'static [EnvAlias],
    pub(super) help: &'static str,
    pub(super) value_if_missing: Option<&'static str>,
    is_positional: bool,
}

/// A key that a program does not take, and the reason, which an error about it shows.
#[derive(Debug, Clone, Copy)]
pub struct RefusedKey {
    /// Name of the key.
    pub name: &'static str,
    /// Completes a sentence that begins with the name, and says what to do instead.
    pub reason: &'static str,
}

/// A conventional environment variable, such as `PORT`, that sets a key.
#[derive(Debug)]
pub struct EnvAlias {
    /// Name of the variable.
    pub var: &'static str,
    /// Converts the variable's text into the key's text; an error completes `VAR = VALUE ...`.
    pub convert: fn(&str) -> Result<String, String>,
}

impl EnvAlias {
    /// Creates an alias whose text is that of the key.
    pub const fn same_text(var: &'static str) -> EnvAlias {
        EnvAlias { var, convert: |text| Ok(text.to_string()) }
    }
}

impl<T> Key<T> {
    /// Creates a key. `name` is the flag without dashes and the key of the file, `heading` groups it in the help, and
    /// `help` is one line without a full stop and without the default, which is appended.
    pub const fn new(
        name: &'static str,
        heading: &'static str,
        field: Field<T>,
        help: &'static str,
    ) -> Key<T> {
        Key {
            name,
            short: None,
            heading,
            field,
            aliases: &[],
            help,
            value_if_missing: None,
            is_positional: false,
        }
    }

    /// Lets the flag stand without a value, and sets the text that it then has. Switches have `true`.
    pub const fn value_if_missing(mut self, text: &'static str) -> Key<T> {
        self.value_if_missing = Some(text);
        self
    }

    /// Sets the one-letter form of the flag.
    pub const fn short(mut self, letter: char) -> Key<T> {
        self.short = Some(letter);
        self
    }

    /// Makes the key the positional arguments of the command line instead of a flag. All that follows the first of them
    /// belongs to it, also what looks like a flag.
    pub const fn positional(mut self) -> Key<T> {
        self.is_positional = true;
        self
    }

    /// Sets variables of other conventions, which count if the program's own variable is not set.
    pub const fn env_aliases(mut self, aliases: &'static [EnvAlias]) -> Key<T> {
        self.aliases = aliases;
        self
    }

    pub(super) fn parse_into(
        &self,
        target: &mut T,
        configured: &ConfiguredValue,
    ) -> Result<(), ValueError> {
        self.field.parse_into(target, configured)
    }

    fn describe(&self, defaults: &mut T) -> KeyInfo {
        KeyInfo {
            name: self.name,
            short: self.short,
            heading: self.heading,
            aliases: self.aliases,
            help: self.help,
            value_name: self.field.value_name(),
            is_list: self.field.is_list(),
            is_switch: self.field.is_switch(),
            is_positional: self.is_positional,
            value_if_missing: self.value_if_missing,
            default: self.field.format_value(defaults),
        }
    }
}

/// The description of a key, whatever its field: for the help and for documentation.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KeyInfo {
    /// The name in the TOML file; `--NAME` as a flag.
    pub name: &'static str,
    /// The one-letter form of the flag.
    pub short: Option<char>,
    /// The heading in the help.
    pub heading: &'static str,
    /// Variables of other conventions.
    pub aliases: &'static [EnvAlias],
    /// One line of help without the default.
    pub help: &'static str,
    /// The placeholder of the value in the help.
    pub value_name: &'static str,
    /// Whether the key takes several values.
    pub is_list: bool,
    /// Whether the flag without a value means `true`.
    pub is_switch: bool,
    /// Whether the key is the positional arguments of the command line instead of a flag.
    pub is_positional: bool,
    /// The value of the flag without a value, where it can stand so and is no switch.
    pub value_if_missing: Option<&'static str>,
    /// The default in text that can be parsed again; empty if there is none.
    pub default: String,
}

impl KeyInfo {
    /// Returns the environment variable of a program: `MYAPP_GRACEFUL_TIMEOUT` for the prefix `MYAPP_`.
    pub(super) fn env_var(&self, prefix: &str) -> String {
        own_var(prefix, self.name)
    }
}

/// The heading that stays last in the help.
pub(super) const GENERAL_HEADING: &str = "General";

/// Returns all keys of a program with the keys `A`, grouped by heading: those of the server first, `General` last. Keys that it
/// refuses are not among them.
pub fn all_keys<A: AppKeys>() -> Vec<KeyInfo> {
    let (mut config, mut app) = (A::server_defaults().config, A::default());
    let is_refused = |name| A::REFUSED_KEYS.iter().any(|refused| refused.name == name);
    let server = SERVER_KEYS.iter().filter(|key| !is_refused(key.name));
    let server = server.map(|key| key.describe(&mut config));
    let keys: Vec<KeyInfo> =
        server.chain(A::KEYS.iter().map(|key| key.describe(&mut app))).collect();
    let mut headings: Vec<&str> = Vec::new();
    for key in &keys {
        if !headings.contains(&key.heading) && key.heading != GENERAL_HEADING {
            headings.push(key.heading);
        }
    }
    headings.push(GENERAL_HEADING);
    let of = |heading| keys.iter().filter(move |key| key.heading == heading).cloned();
    headings.into_iter().flat_map(of).collect()
}
