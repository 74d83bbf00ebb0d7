//! Environment variables as a source of configuration.

use std::collections::BTreeMap;

use super::configured_value::{ConfiguredValue, ValueSource, ValueText, quote_for_error};
use super::did_you_mean::nearest_name;
use super::key::KeyInfo;
use crate::error::{Error, Result};

/// Variables with the prefix of the command `prefork` that an upgrade sets.
const UPGRADE_VARS: [&str; 2] = ["PREFORK_PROOF", "PREFORK_MANIFEST"];

/// Returns the environment variable of a key: `MYAPP_GRACEFUL_TIMEOUT` for the prefix `MYAPP_`.
pub(super) fn own_var(prefix: &str, name: &str) -> String {
    format!("{prefix}{}", name.replace('-', "_").to_ascii_uppercase())
}

/// Returns the prefix of the variables of a program: `MY_APP_` for `my-app`.
pub(super) fn env_prefix(program: &str) -> String {
    let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    program.chars().map(upper).chain(['_']).collect()
}

/// The environment variables of the process; an empty one counts as unset.
pub(super) struct Environment {
    variables: BTreeMap<String, String>,
    /// What the program's own variables begin with.
    prefix: String,
}

impl Environment {
    pub(super) fn new(
        prefix: String,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Environment {
        Environment {
            variables: variables.filter(|(_, value)| !value.is_empty()).collect(),
            prefix,
        }
    }

    /// Returns the path of the configuration file that the variable `MYAPP_CONFIG` names.
    pub(super) fn config_file(&self) -> Option<&str> {
        self.variables.get(&self.config_var()).map(String::as_str)
    }

    fn config_var(&self) -> String {
        format!("{}CONFIG", self.prefix)
    }

    /// Returns the program's own variable for a key of this name, if it is set.
    pub(super) fn own_var_of(&self, name: &str) -> Option<String> {
        Some(own_var(&self.prefix, name)).filter(|var| self.variables.contains_key(var))
    }

    /// Returns the value of a key: from the program's own variable, else from an alias.
    pub(super) fn value_of(&self, key: &KeyInfo) -> Result<Option<ConfiguredValue>> {
        let own_var = key.env_var(&self.prefix);
        if let Some(text) = self.variables.get(&own_var) {
            return Ok(Some(own_value(key, text, own_var)));
        }
        let value = |alias: &str| self.variables.get(alias);
        let found = key.aliases.iter().find_map(|a| value(a.var).map(|text| (a, text)));
        let Some((alias, text)) = found else { return Ok(None) };
        let shown = quote_for_error(text);
        let text = (alias.convert)(text)
            .map_err(|why| Error::config(format!("{} = {shown} {why}", alias.var)))?;
        Ok(Some(ConfiguredValue::single(
            ValueText { text, shown },
            ValueSource::Env(alias.var.to_string()),
        )))
    }

    /// Returns a warning for each unknown variable with the program's prefix; with `only_misspelt`, for those that
    /// resemble a key.
    ///
    /// Not an error: Kubernetes sets such variables for a service of this name.
    pub(super) fn unknown_variable_warnings(
        &self,
        keys: &[KeyInfo],
        only_misspelt: bool,
    ) -> Vec<String> {
        let mut known: Vec<String> = keys.iter().map(|key| key.env_var(&self.prefix)).collect();
        known.push(self.config_var());
        let is_known =
            |name: &str| known.iter().any(|one| one == name) || UPGRADE_VARS.contains(&name);
        let unknown = self.variables.keys().filter_map(|name| {
            let tail = name.strip_prefix(&self.prefix)?;
            (!is_known(name)).then_some((name, tail))
        });
        unknown
            .filter_map(|(name, tail)| {
                // Compared without the prefix, with which all short names would be similar.
                let tails = known.iter().filter_map(|n| n.strip_prefix(&self.prefix));
                let hint = nearest_name(tail, tails)
                    .map(|tail| format!(" (did you mean {}{tail}?)", self.prefix));
                if only_misspelt && hint.is_none() {
                    return None;
                }
                let hint = hint.unwrap_or_default();
                Some(format!("environment variable {name} is unknown and ignored{hint}"))
            })
            .collect()
    }
}

fn own_value(key: &KeyInfo, text: &str, name: String) -> ConfiguredValue {
    if !key.is_list {
        return ConfiguredValue::single(ValueText::quoted(text), ValueSource::Env(name));
    }
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    ConfiguredValue {
        items: words.map(ValueText::quoted).collect(),
        is_list: true,
        source: ValueSource::Env(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_the_name_of_the_program_in_capitals() {
        for (name, prefix) in [("prefork", "PREFORK_"), ("my-app", "MY_APP_"), ("shop2", "SHOP2_")]
        {
            assert_eq!(env_prefix(name), prefix);
        }
    }
}
