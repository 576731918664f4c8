//! How far it is: a bar on a terminal, lines elsewhere.

use std::io::Write as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::architect::apply::Progress;
use crate::architect::migration::Step;

/// Shows steps.
pub(super) struct Bar {
    bar: ProgressBar,
}

impl Bar {
    pub(super) fn start() -> Self {
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {wide_msg}");
        let bar = ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar }
    }

    pub(super) fn says(&self, what: &str) {
        if self.bar.is_hidden() {
            // Nobody reads it if standard error is closed.
            let _ = writeln!(std::io::stderr(), "{what}");
        } else {
            self.bar.set_message(what.to_owned());
        }
    }

    pub(super) fn ends(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn step(&mut self, number: usize, of: usize, step: &Step) {
        self.bar.set_length(of as u64);
        self.bar.set_position(number as u64);
        self.says(&format!("{} {}", step.id, step.title));
    }

    fn waits(&mut self, step: &Step, tries: u32, blockers: &[String]) {
        let who = if blockers.is_empty() { String::new() } else { format!(": {}", blockers.join("; ")) };
        self.says(&format!("{} waits for a lock, try {}{who}", step.id, tries + 1));
    }
}
