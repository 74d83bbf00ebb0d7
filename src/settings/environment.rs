//! Environment variables as a source of configuration.

use std::collections::BTreeMap;

use super::configured_value::{ConfiguredValue, ValueSource, ValueText, quote_for_error};
use super::did_you_mean::nearest_name;
use super::key::Key;
use super::key_table::KEYS;
use tokio_prefork::{Error, Result};

/// Variable that names the configuration file.
pub(crate) const CONFIG_VAR: &str = "PREFORK_CONFIG";

/// Variables with our prefix that are known but not configuration keys.
const NON_KEY_VARS: &[&str] = &["PREFORK_PROOF", "PREFORK_MANIFEST", CONFIG_VAR];

/// The environment variables of the process; an empty one counts as unset.
pub(super) struct Environment(BTreeMap<String, String>);

impl Environment {
    pub(super) fn new(variables: impl Iterator<Item = (String, String)>) -> Environment {
        Environment(variables.filter(|(_, value)| !value.is_empty()).collect())
    }

    /// Returns the value of a key: from its `PREFORK_` variable, else from an alias.
    pub(super) fn value_of(&self, key: &Key) -> Result<Option<ConfiguredValue>> {
        let own_var = key.env_var();
        if let Some(text) = self.0.get(&own_var) {
            return Ok(Some(Environment::own_value(key, text, own_var)));
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

    fn own_value(key: &Key, text: &str, name: String) -> ConfiguredValue {
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

    /// Returns a warning for each unknown `PREFORK_` variable.
    ///
    /// Not an error: Kubernetes sets such variables for a service of this name.
    pub(super) fn unknown_variable_warnings(&self) -> Vec<String> {
        let mut known: Vec<String> = KEYS.iter().map(Key::env_var).collect();
        known.extend(NON_KEY_VARS.iter().map(ToString::to_string));
        let unknown = self.0.keys().filter(|n| n.starts_with("PREFORK_") && !known.contains(n));
        unknown
            .map(|name| {
                // Compared without the prefix, with which all short names would be similar.
                let tails = known.iter().filter_map(|n| n.strip_prefix("PREFORK_"));
                let hint = nearest_name(&name["PREFORK_".len()..], tails)
                    .map(|tail| format!(" (did you mean PREFORK_{tail}?)"))
                    .unwrap_or_default();
                format!("environment variable {name} is unknown and ignored{hint}")
            })
            .collect()
    }
}
