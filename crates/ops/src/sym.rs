//! Sizes as expressions: polynomials with integer coefficients over names.

use std::{collections::BTreeMap, fmt};

use midtread_graph::Dim;

/// A size, or an element of a shape tensor: a sum of products of symbols, or unknown.
///
/// Two expressions that are equal are equal for every value of their symbols. Division that does not come out even
/// makes a new symbol whose name is the quotient's text, so that the same quotient is the same symbol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SymDim {
    /// A polynomial.
    Expr(Expr),
    /// Nothing is known; not even equal to another unknown size.
    Unknown,
}

/// `sum of coefficient * product of symbols`, in a canonical order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Expr(BTreeMap<Vec<String>, i64>);

impl SymDim {
    /// A number.
    pub fn known(n: i64) -> Self {
        let mut terms = BTreeMap::new();
        if n != 0 {
            terms.insert(Vec::new(), n);
        }
        Self::Expr(Expr(terms))
    }

    /// A symbol.
    pub fn symbol(name: &str) -> Self {
        Self::Expr(Expr(BTreeMap::from([(vec![name.to_owned()], 1)])))
    }

    /// From what the graph knows. Text that is not a plain name is one symbol with that text.
    pub fn from_dim(dim: &Dim) -> Self {
        match dim {
            Dim::Known(n) => i64::try_from(*n).map_or(Self::Unknown, Self::known),
            Dim::Symbol(name) => Self::symbol(name),
            Dim::Unknown => Self::Unknown,
        }
    }

    /// For the graph. A negative number is no size: unknown.
    pub fn to_dim(&self) -> Dim {
        match (self, self.as_known()) {
            (_, Some(n)) => usize::try_from(n).map_or(Dim::Unknown, Dim::Known),
            (Self::Expr(expr), None) => Dim::Symbol(expr.to_string()),
            (Self::Unknown, None) => Dim::Unknown,
        }
    }

    /// The number, if it is one.
    pub fn as_known(&self) -> Option<i64> {
        let Self::Expr(Expr(terms)) = self else { return None };
        match terms.len() {
            0 => Some(0),
            1 => terms.get(&Vec::new()).copied(),
            _ => None,
        }
    }

    /// Whether both are known to be the same for every value of the symbols.
    pub fn same(&self, other: &Self) -> bool {
        *self != Self::Unknown && self == other
    }

    /// `self + other`; unknown on overflow, as in all of these.
    pub fn add(&self, other: &Self) -> Self {
        self.combine(other, |a, b| {
            let mut terms = a.0.clone();
            for (monomial, &coefficient) in &b.0 {
                let sum = terms.get(monomial).copied().unwrap_or(0).checked_add(coefficient)?;
                match sum {
                    0 => terms.remove(monomial),
                    _ => terms.insert(monomial.clone(), sum),
                };
            }
            Some(Expr(terms))
        })
    }

    /// `self - other`.
    pub fn sub(&self, other: &Self) -> Self {
        self.add(&other.mul(&Self::known(-1)))
    }

    /// `self * other`.
    pub fn mul(&self, other: &Self) -> Self {
        if self.as_known() == Some(0) || other.as_known() == Some(0) {
            return Self::known(0);
        }
        self.combine(other, |a, b| {
            let mut sum = Self::known(0);
            for (ma, ca) in &a.0 {
                for (mb, cb) in &b.0 {
                    let mut monomial = [ma.as_slice(), mb.as_slice()].concat();
                    monomial.sort();
                    let term = Expr(BTreeMap::from([(monomial, ca.checked_mul(*cb)?)]));
                    sum = sum.add(&Self::Expr(term));
                }
            }
            match sum {
                Self::Expr(expr) => Some(expr),
                Self::Unknown => None,
            }
        })
    }

    /// `floor(self / other)`, for sizes that are not negative. Exact where every term divides.
    pub fn div(&self, other: &Self) -> Self {
        if let (Some(a), Some(b)) = (self.as_known(), other.as_known()) {
            return if b == 0 { Self::Unknown } else { Self::known(a.div_euclid(b)) };
        }
        if other.as_known() == Some(0) {
            return Self::Unknown;
        }
        self.combine(other, |a, b| {
            if let Some(quotient) = divide_exactly(a, b) {
                return Some(quotient);
            }
            Some(Expr(BTreeMap::from([(vec![format!("floor(({a})/({b}))")], 1)])))
        })
    }

    fn combine(&self, other: &Self, f: impl FnOnce(&Expr, &Expr) -> Option<Expr>) -> Self {
        match (self, other) {
            (Self::Expr(a), Self::Expr(b)) => f(a, b).map_or(Self::Unknown, Self::Expr),
            _ => Self::Unknown,
        }
    }
}

/// Divides by a single term, if every term of `a` divides.
fn divide_exactly(a: &Expr, b: &Expr) -> Option<Expr> {
    let [(divisor, &by)] = b.0.iter().collect::<Vec<_>>()[..] else {
        return (a == b).then(Expr::one);
    };
    let mut terms = BTreeMap::new();
    for (monomial, &coefficient) in &a.0 {
        if coefficient % by != 0 {
            return None;
        }
        let mut rest = monomial.clone();
        for symbol in divisor {
            rest.remove(rest.iter().position(|s| s == symbol)?);
        }
        terms.insert(rest, coefficient / by);
    }
    Some(Expr(terms))
}

impl Expr {
    fn one() -> Self {
        Self(BTreeMap::from([(Vec::new(), 1)]))
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("0");
        }
        // The constant term, whose empty product sorts first, is written last.
        let terms = self
            .0
            .iter()
            .skip_while(|(m, _)| m.is_empty())
            .chain(self.0.get_key_value(&Vec::new()));
        for (i, (monomial, &coefficient)) in terms.enumerate() {
            let sign = match (i, coefficient < 0) {
                (0, true) => "-",
                (0, false) => "",
                (_, true) => " - ",
                (_, false) => " + ",
            };
            let size = coefficient.unsigned_abs();
            let product = monomial.join("*");
            match (size, monomial.is_empty()) {
                (_, true) => write!(f, "{sign}{size}")?,
                (1, false) => write!(f, "{sign}{product}")?,
                (_, false) => write!(f, "{sign}{size}*{product}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(d: &SymDim) -> String {
        d.to_dim().to_string()
    }

    #[test]
    fn equal_expressions_are_equal_however_they_were_made() {
        let (n, s) = (SymDim::symbol("N"), SymDim::symbol("S"));
        let two = SymDim::known(2);
        let a = n.add(&s).mul(&n.sub(&s));
        let b = n.mul(&n).sub(&s.mul(&s));
        assert!(a.same(&b));
        assert_eq!(text(&n.mul(&s).mul(&two).add(&SymDim::known(-1))), "2*N*S - 1");
        assert!(n.mul(&s).div(&s).same(&n));
        assert!(n.sub(&n).same(&SymDim::known(0)));
        assert!(!SymDim::Unknown.same(&SymDim::Unknown));
    }

    #[test]
    fn division_that_does_not_come_out_even_is_a_symbol_of_its_own() {
        let n = SymDim::symbol("N");
        let half = n.div(&SymDim::known(2));
        assert_eq!(text(&half), "floor((N)/(2))");
        assert!(half.same(&n.div(&SymDim::known(2))));
        assert_eq!(n.mul(&SymDim::known(4)).div(&SymDim::known(2)), n.mul(&SymDim::known(2)));
        assert_eq!(SymDim::known(7).div(&SymDim::known(2)).as_known(), Some(3));
        assert_eq!(n.div(&SymDim::known(0)), SymDim::Unknown);
        assert_eq!(n.div(&n).as_known(), Some(1));
    }

    #[test]
    fn overflow_is_unknown() {
        let big = SymDim::known(i64::MAX);
        assert_eq!(big.add(&SymDim::known(1)), SymDim::Unknown);
        assert_eq!(big.mul(&big), SymDim::Unknown);
        assert_eq!(SymDim::known(-3).to_dim(), Dim::Unknown);
    }
}
