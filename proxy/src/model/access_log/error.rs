//! Why a format is refused.

/// What is wrong with an access log's format. The messages name the operator, in Envoy's spelling.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A `%` that begins no operator.
    #[error(
        "no command operator begins at byte {0}: write %NAME%, %NAME(arguments)%, or %% for a percent sign"
    )]
    Syntax(usize),
    /// Envoy has no such operator.
    #[error("%{0}% is not a command operator")]
    Unknown(String),
    /// Envoy has it, Attaché does not.
    #[error("the command operator %{0}% is not supported")]
    Unsupported(String),
    /// Arguments or a length at an operator that has neither.
    #[error("%{0}% takes no arguments and no length")]
    NoArguments(String),
    /// A length at an operator that has none.
    #[error("%{0}% takes no length")]
    NoLength(String),
    /// An operator without the arguments that it must have.
    #[error("%{0}% needs arguments, such as %{0}(NAME)%")]
    MissingArguments(String),
    /// Arguments that mean nothing.
    #[error("%{operator}({argument})%: {why}")]
    Argument {
        /// The operator.
        operator: String,
        /// What stands between the parentheses.
        argument: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A member of a JSON format, with what is wrong with it.
    #[error("{member}: {source}")]
    Member {
        /// The path to it, such as `json_format.request.id`.
        member: String,
        /// What is wrong.
        source: Box<FormatError>,
    },
}
