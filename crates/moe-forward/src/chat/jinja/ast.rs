//! The syntax tree of a template. It isn't tied to a thread, so one template renders many
//! conversations.

use std::sync::Arc;

pub(super) type Name = Arc<str>;

/// The statements of a template, or of the inside of a block, in order.
pub(super) type Body = Vec<Stmt>;

/// The syntax tree of a template.
#[derive(Default)]
pub(super) struct Tree {
    pub body: Body,
    pub blocks: TemplateBlocks,
}

/// All `{% block %}`s by name, wherever they are.
pub(super) type TemplateBlocks = Arc<[(Name, Arc<Body>)]>;

pub(super) struct Stmt {
    pub line: usize,
    pub kind: StmtKind,
}

pub(super) enum StmtKind {
    Text(Arc<str>),
    Print(Vec<Expr>),
    For(Arc<For>),
    If {
        arms: Vec<(Expr, Body)>,
        otherwise: Body,
    },
    Set(AssignmentTarget, Expr),
    SetBlock {
        target: AssignmentTarget,
        filters: Vec<(Name, Args)>,
        body: Body,
    },
    Macro(Arc<Macro>),
    Call {
        macro_: Arc<Macro>,
        call: Expr,
    },
    Filter {
        filters: Vec<(Name, Args)>,
        body: Body,
    },
    With {
        values: Vec<(AssignmentTarget, Expr)>,
        body: Body,
    },
    /// A body with a scope of its own: `{% generation %}`, `{% autoescape false %}`.
    Scope(Body),
    /// `{% block %}`. Unless it is `scoped`, it sees only variables set outside all loops.
    Block {
        body: Arc<Body>,
        is_scoped: bool,
    },
    Break,
    Continue,
}

pub(super) struct For {
    pub target: AssignmentTarget,
    pub iter: Expr,
    pub filter: Option<Expr>,
    pub recursive: bool,
    pub body: Body,
    pub otherwise: Body,
}

pub(super) struct Macro {
    pub name: Name,
    pub params: Vec<(Name, Option<Expr>)>,
    pub body: Body,
    pub takes_varargs: bool,
    pub takes_kwargs: bool,
    pub takes_caller: bool,
}

pub(super) enum AssignmentTarget {
    Name(Name),
    /// `namespace.attribute`
    Attr(Name, Name),
    Tuple(Vec<AssignmentTarget>),
}

pub(super) struct Expr {
    pub line: usize,
    pub kind: ExprKind,
}

pub(super) enum ExprKind {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<str>),
    Name(Name),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attr(Box<Expr>, Name),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Args),
    Filter(Box<Expr>, Name, Args),
    Test(Box<Expr>, Name, Args),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    Compare(Box<Expr>, Vec<(CompareOp, Expr)>),
    Concat(Vec<Expr>),
    If { test: Box<Expr>, then: Box<Expr>, otherwise: Option<Box<Expr>> },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

#[derive(Default)]
pub(super) struct Args {
    pub positional: Vec<Expr>,
    pub named: Vec<(Name, Expr)>,
    pub list: Option<Box<Expr>>,
    pub dict: Option<Box<Expr>>,
}
