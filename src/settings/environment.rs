//! What the environment says.

use std::collections::BTreeMap;

use super::configured_value::{ConfiguredValue, ValueSource, ValueText, quote_for_error};
use super::did_you_mean::nearest_name;
use super::key::Key;
use super::key_table::KEYS;
use tokio_prefork::{Error, Result};

/// The variable that names the configuration file.
pub(crate) const CONFIG_VAR: &str = "PREFORK_CONFIG";

/// Variables that begin like ours, mean something to us, and are no key.
const NOT_KEYS: &[&str] = &["PREFORK_PROOF", "PREFORK_MANIFEST", CONFIG_VAR];

/// The variables that are set; an empty one counts as unset.
pub(super) struct Environment(BTreeMap<String, String>);

impl Environment {
    pub(super) fn new(variables: impl Iterator<Item = (String, String)>) -> Environment {
        Environment(variables.filter(|(_, value)| !value.is_empty()).collect())
    }

    /// What is said about a key: by our own variable, else by an alias.
    pub(super) fn value_of(&self, key: &Key) -> Result<Option<ConfiguredValue>> {
        let ours = key.env_var();
        if let Some(text) = self.0.get(&ours) {
            return Ok(Some(Environment::of_ours(key, text, ours)));
        }
        let found = key.aliases.iter().find_map(|a| self.0.get(a.var).map(|text| (a, text)));
        let Some((alias, text)) = found else { return Ok(None) };
        let shown = quote_for_error(text);
        let text = (alias.convert)(text)
            .map_err(|why| Error::config(format!("{} = {shown} {why}", alias.var)))?;
        Ok(Some(ConfiguredValue::single(
            ValueText { text, shown },
            ValueSource::Env(alias.var.to_string()),
        )))
    }

    fn of_ours(key: &Key, text: &str, name: String) -> ConfiguredValue {
        if !key.is_list() {
            return ConfiguredValue::single(ValueText::quoted(text), ValueSource::Env(name));
        }
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        ConfiguredValue {
            items: words.map(ValueText::quoted).collect(),
            is_list: true,
            source: ValueSource::Env(name),
        }
    }

    /// A line for each variable that looks like ours and is not. No errors: whoever starts us may
    /// set more of them than we know (Kubernetes does, for a service of this name).
    pub(super) fn warnings(&self) -> Vec<String> {
        let mut known: Vec<String> = KEYS.iter().map(Key::env_var).collect();
        known.extend(NOT_KEYS.iter().map(ToString::to_string));
        let unknown = self.0.keys().filter(|n| n.starts_with("PREFORK_") && !known.contains(n));
        unknown
            .map(|name| {
                // Without the common prefix, which would make every short name near to every other.
                let tails = known.iter().filter_map(|n| n.strip_prefix("PREFORK_"));
                let hint = nearest_name(&name["PREFORK_".len()..], tails)
                    .map(|tail| format!(" (did you mean PREFORK_{tail}?)"))
                    .unwrap_or_default();
                format!("environment variable {name} is unknown and ignored{hint}")
            })
            .collect()
    }
}
