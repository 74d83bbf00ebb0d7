//! Trust that is lost by disappointment, for twice as long each time, and regained at once.

/// After so many disappointments in a row trust does not fall further: 2^6 - 2 times go without it.
const MOST: u32 = 6;

/// Whether to expect once more what may not come.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Trust {
    disappointed: u32,
    rest: u32,
}

impl Trust {
    /// Whether to trust this time.
    pub(crate) fn is_given(&mut self) -> bool {
        let given = self.rest == 0;
        self.rest = self.rest.saturating_sub(1);
        given
    }

    pub(crate) fn lose(&mut self) {
        self.disappointed = (self.disappointed + 1).min(MOST);
        self.rest = (1 << self.disappointed) - 2;
    }

    pub(crate) fn regain(&mut self) {
        *self = Trust::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_falls_with_each_disappointment_and_is_back_at_once() {
        let mut trust = Trust::default();
        let mut rests = Vec::new();
        for _ in 0..8 {
            trust.lose();
            let mut rest = 0;
            while !trust.is_given() {
                rest += 1;
            }
            rests.push(rest);
        }
        assert_eq!(rests, [0, 2, 6, 14, 30, 62, 62, 62]);
        trust.lose();
        trust.regain();
        assert!(trust.is_given() && trust.is_given());
    }
}
