//! Panels: blocks of a matrix copied so that a tile reads them from front to back.

use std::ops::Range;

use super::{MatRef, panel_width};

/// Something that can be had as panels: the second factor of a product.
pub(crate) trait PanelSource: Sync {
    /// Writes rows `ks` of columns `cols`: panels of `nr` columns, the last as wide as `panel_width` says and filled
    /// with zeros; within one, row after row.
    fn pack(&self, ks: Range<usize>, cols: Range<usize>, nr: usize, panels: &mut [f32]);
}

impl PanelSource for MatRef<'_> {
    fn pack(&self, ks: Range<usize>, cols: Range<usize>, nr: usize, panels: &mut [f32]) {
        let kc = ks.len();
        for col in cols.clone().step_by(nr) {
            let n_cols = nr.min(cols.end - col);
            let width = panel_width(n_cols, nr);
            let panel = &mut panels[(col - cols.start) * kc..][..width * kc];
            if self.col_stride == 1 {
                let rows = ks.clone().map(|p| &self.data[p * self.row_stride + col..][..n_cols]);
                pack_rows(rows, n_cols, width, panel);
            } else {
                self.pack_columns(ks.clone(), col, n_cols, width, panel);
            }
        }
    }
}

impl MatRef<'_> {
    /// A panel of a matrix that is stored by columns.
    fn pack_columns(
        &self,
        ks: Range<usize>,
        col: usize,
        n_cols: usize,
        width: usize,
        panel: &mut [f32],
    ) {
        if n_cols < width {
            panel.fill(0.0);
        }
        // Eight by eight, so that both sides are read and written in runs.
        for j0 in (0..n_cols).step_by(8) {
            let n_j = 8.min(n_cols - j0);
            for p0 in (0..ks.len()).step_by(8) {
                let n_p = 8.min(ks.len() - p0);
                if self.row_stride == 1 && n_j == 8 && n_p == 8 {
                    let mut tile = [[0.0; 8]; 8];
                    for (j, tile) in tile.iter_mut().enumerate() {
                        let start = ks.start + p0 + (col + j0 + j) * self.col_stride;
                        *tile = *self.data[start..].first_chunk().expect("eight rows");
                    }
                    for p in 0..8 {
                        let row = &mut panel[(p0 + p) * width + j0..][..8];
                        for j in 0..8 {
                            row[j] = tile[j][p];
                        }
                    }
                    continue;
                }
                for p in p0..p0 + n_p {
                    for j in j0..j0 + n_j {
                        panel[p * width + j] = self.at(ks.start + p, col + j);
                    }
                }
            }
        }
    }
}

/// A panel of rows of `n_cols` elements, each filled up to `width` with zeros.
#[inline]
fn pack_rows<'a>(
    rows: impl Iterator<Item = &'a [f32]>,
    n_cols: usize,
    width: usize,
    panel: &mut [f32],
) {
    for (to, from) in panel.chunks_exact_mut(width).zip(rows) {
        if n_cols == width {
            copy_panel_row(from, to);
        } else {
            to[..n_cols].copy_from_slice(from);
            to[n_cols..].fill(0.0);
        }
    }
}

/// Copies as many elements as a panel is wide. The common widths are a few registers and not a call.
#[inline(always)]
pub(crate) fn copy_panel_row<T: Copy>(from: &[T], to: &mut [T]) {
    match to.len() {
        8 => to.copy_from_slice(&from[..8]),
        16 => to.copy_from_slice(&from[..16]),
        32 => to.copy_from_slice(&from[..32]),
        len => to.copy_from_slice(&from[..len]),
    }
}

/// The matrix by rows.
pub(super) fn copy_rows(matrix: &MatRef, out: &mut [f32]) {
    for (i, row) in out.chunks_exact_mut(matrix.n_cols.max(1)).enumerate() {
        for (j, x) in row.iter_mut().enumerate() {
            *x = matrix.at(i, j);
        }
    }
}
