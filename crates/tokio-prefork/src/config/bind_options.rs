//! The addresses to listen on with their options.

use super::Config;
use crate::client::ProxyProtocol;
use crate::https_redirect::{RedirectAddr, RedirectOptions};
use crate::listener::{BindAddr, BindOptions, ListenAddr, ListenerSet, ResolvedHosts};

impl Config {
    /// Returns what `addr` of `bind`, as it was written, says about its connections itself.
    pub(crate) fn bind_options_at(&self, addr: &ListenAddr) -> BindOptions {
        let index = self.bind.iter().position(|bind| bind == addr);
        index.map_or_else(BindOptions::default, |index| self.bind_options_of(index))
    }

    fn bind_options_of(&self, index: usize) -> BindOptions {
        self.bind_options.get(index).copied().unwrap_or_default()
    }

    /// Returns whether connections of a listener at `addr`, as it was written, begin with a PROXY header.
    pub fn proxy_protocol_at(&self, addr: &ListenAddr) -> ProxyProtocol {
        self.bind_options_at(addr).proxy_protocol.unwrap_or(self.proxy_protocol)
    }

    /// Resolves the addresses to listen on: see [`ListenerSet::resolve_bind_addrs`].
    pub(crate) fn resolve_bind_addrs(&mut self, sockets: &mut ListenerSet, names: &ResolvedHosts) {
        let origins = sockets.resolve_bind_addrs(&mut self.bind, names);
        let written = std::mem::take(&mut self.bind_options);
        let of_origin = |origin: usize| written.get(origin).copied().unwrap_or_default();
        self.bind_options = origins.into_iter().map(of_origin).collect();
        let speaks_tls =
            |addr: &&ListenAddr| self.speaks_tls_at(addr, matches!(addr, ListenAddr::Unix(_)));
        sockets.set_tls_addrs(self.bind.iter().filter(speaks_tls).cloned().collect());
    }

    /// Removes all addresses to listen on.
    pub(crate) fn clear_bind(&mut self) {
        self.bind.clear();
        self.bind_options.clear();
    }

    /// Adds an address to listen on, with its options.
    pub(crate) fn push_bind(&mut self, bind: BindAddr) {
        let options = bind.options();
        self.push_bind_options(bind.addr, options);
    }

    fn push_bind_options(&mut self, addr: ListenAddr, options: BindOptions) {
        self.bind_options.resize(self.bind.len(), BindOptions::default());
        self.bind_options.push(options);
        self.bind.push(addr);
    }

    /// Adds the addresses of sockets that were passed to this process, in place of a `bind` that was left at its default.
    pub(crate) fn add_passed_sockets(&mut self, passed: &[ListenAddr]) {
        if passed.is_empty() {
            return;
        }
        let serving: Vec<BindAddr> = self.bind_addrs().collect();
        let is_default = serving == [ListenAddr::default().into()];
        if is_default {
            self.clear_bind();
            self.add_redirect_addrs();
        }
        for addr in passed {
            if !self.bind.contains(addr) {
                self.push_bind(addr.clone().into());
            }
        }
    }

    /// Removes the redirecting addresses from `bind`, so that they can be added anew.
    pub(super) fn remove_redirect_addrs(&mut self) {
        let options: Vec<_> = (0..self.bind.len()).map(|i| self.bind_options_of(i)).collect();
        let addrs = std::mem::take(&mut self.bind);
        self.bind_options.clear();
        for (addr, options) in addrs.into_iter().zip(options) {
            if options.https_redirect.is_none() {
                self.push_bind_options(addr, options);
            }
        }
    }

    /// Adds the addresses of `https_redirect` to `bind`.
    pub(super) fn add_redirect_addrs(&mut self) {
        for RedirectAddr { addr, https_port, proxy_protocol } in self.https_redirect.clone() {
            let https_redirect = Some(RedirectOptions { https_port });
            let options = BindOptions { proxy_protocol, tls: Some(false), https_redirect };
            self.push_bind_options(addr, options);
        }
    }

    /// Returns the addresses to listen on with their options, without those that only redirect.
    pub(crate) fn bind_addrs(&self) -> impl Iterator<Item = BindAddr> + '_ {
        let with_options = self.bind.iter().cloned().enumerate();
        let with_options = with_options.map(|(index, addr)| (addr, self.bind_options_of(index)));
        let serving = with_options.filter(|(_, options)| options.https_redirect.is_none());
        serving.map(|(addr, options)| BindAddr::new(addr, options))
    }

    /// Returns an address whose connections may begin with a PROXY header, and of which kind.
    pub(super) fn addr_with_proxy_protocol(&self) -> Option<(&ListenAddr, ProxyProtocol)> {
        let protocol = |index: usize| {
            self.bind_options_of(index).proxy_protocol.unwrap_or(self.proxy_protocol)
        };
        let with_protocol = self.bind.iter().enumerate();
        let mut with_protocol = with_protocol.map(|(index, addr)| (addr, protocol(index)));
        with_protocol.find(|(_, protocol)| protocol.is_on())
    }

    /// Returns whether connections of any listener may begin with a PROXY header.
    pub(crate) fn uses_proxy_protocol(&self) -> bool {
        self.addr_with_proxy_protocol().is_some()
    }

    /// Returns whether any address redirects its requests to https.
    pub(crate) fn has_https_redirect(&self) -> bool {
        !self.https_redirect.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(texts: &[&str]) -> Vec<ListenAddr> {
        texts.iter().map(|text| text.parse().expect("address")).collect()
    }

    fn redirecting(config: &Config) -> Vec<&ListenAddr> {
        let is_redirecting =
            |addr: &&ListenAddr| config.bind_options_at(addr).https_redirect.is_some();
        config.bind.iter().filter(is_redirecting).collect()
    }

    #[test]
    fn passed_sockets_replace_the_default_bind_and_are_added_to_an_explicit_one() {
        for (bind, passed, served) in [
            (&["127.0.0.1:3000"][..], &[][..], &["127.0.0.1:3000"][..]),
            (&["127.0.0.1:3000"], &["[::]:80", "unix:/run/a"], &["[::]:80", "unix:/run/a"]),
            (&["127.0.0.1:3000"], &["127.0.0.1:3000"], &["127.0.0.1:3000"]),
            (&[":80", "127.0.0.1:1"], &["[::]:80"], &["[::]:80", "127.0.0.1:1"]),
            (&["127.0.0.1:1"], &["fd://3"], &["127.0.0.1:1", "fd://3"]),
        ] {
            let mut config = Config::builder().bind(addrs(bind)).build().expect("valid");
            config.add_passed_sockets(&addrs(passed));
            assert_eq!(config.bind, addrs(served));
        }
    }

    #[test]
    fn a_redirecting_address_keeps_its_role_beside_passed_sockets() {
        let config = Config::builder().https_redirect(":80?https-port=443").expect("address");
        let mut config = config.build().expect("valid");
        config.add_passed_sockets(&addrs(&["[::]:443"]));
        assert_eq!(config.bind, addrs(&[":80", ":443"]));
        assert_eq!(redirecting(&config), [&addrs(&[":80"])[0]]);
        // A passed socket may be the one that redirects.
        config.add_passed_sockets(&addrs(&["[::]:80"]));
        assert_eq!(redirecting(&config), [&addrs(&[":80"])[0]]);
    }

    #[test]
    fn building_again_changes_the_role_of_no_address() {
        let config = Config::builder().listen("127.0.0.1:1?proxy-protocol=off").expect("address");
        let config = config.https_redirect("127.0.0.1:2?https-port=7").expect("address");
        let config = config.build().expect("valid").into_builder().build().expect("valid");
        assert_eq!(config.bind, addrs(&["127.0.0.1:1", "127.0.0.1:2"]));
        let options = config.bind_options_at(&config.bind[1]);
        assert_eq!(options.https_redirect, Some(RedirectOptions { https_port: Some(7) }));
        let serving: Vec<String> = config.bind_addrs().map(|bind| bind.to_string()).collect();
        assert_eq!(serving, ["127.0.0.1:1?proxy-protocol=off"]);
    }

    #[test]
    fn an_address_has_one_role() {
        let build = |bind: &str, redirects: &[&str]| {
            let builder = Config::builder().listen(bind).expect("address");
            let with_redirects = redirects
                .iter()
                .try_fold(builder, |builder, redirect| builder.https_redirect(*redirect));
            with_redirects.expect("addresses").build()
        };
        build("127.0.0.1:0", &["127.0.0.1:0?https-port=1", "127.0.0.1:0?https-port=2"])
            .expect("free ports");
        for (bind, redirects) in [(":80", &[":80"][..]), (":443", &[":80", ":80?https-port=1"])] {
            let error = build(bind, redirects).expect_err("twice").to_string();
            assert!(error.starts_with("https-redirect = [::]:80 is"), "{error}");
        }
        let error = build(":443", &[":80"]).expect_err("no TLS").to_string();
        assert!(error.contains("no address speaks TLS"), "{error}");
        let dir = Config::builder().acme_challenge_dir("/var/lib/acme").build();
        assert!(dir.expect_err("useless").to_string().starts_with("acme-challenge-dir = "));
    }
}
