//! Deliberate mistakes in the shell: a simulator that cannot find them would not find the core's either.

/// One deliberate mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A link loses a frame and goes on.
    LoseFrame,
    /// A link swaps two frames: STABLE may overtake DATA.
    SwapFrames,
    /// A link changes a body.
    CorruptBody,
    /// A member's report of what it accepted is thrown away (R5).
    ForgetSlots,
    /// A member's report claims that it received nothing (R3).
    ShortReceived,
    /// The shell accepts in the member's name what the member never saw (R7).
    FalseAccept,
    /// Answers are given to the wrong request.
    CrossedAnswers,
    /// Acknowledged entries are said to be confirmed although they are not.
    FalseLabel,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::LoseFrame,
        Self::SwapFrames,
        Self::CorruptBody,
        Self::ForgetSlots,
        Self::ShortReceived,
        Self::FalseAccept,
        Self::CrossedAnswers,
        Self::FalseLabel,
    ];

    /// Its name on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::LoseFrame => "lose-frame",
            Self::SwapFrames => "swap-frames",
            Self::CorruptBody => "corrupt-body",
            Self::ForgetSlots => "forget-slots",
            Self::ShortReceived => "short-received",
            Self::FalseAccept => "false-accept",
            Self::CrossedAnswers => "crossed-answers",
            Self::FalseLabel => "false-label",
        }
    }

    /// The mutant of a name.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mutant| mutant.word() == word)
    }
}
