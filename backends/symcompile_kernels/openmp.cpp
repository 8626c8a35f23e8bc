/* The kernels on OpenMP's threads, as C functions: PyTorch calls them through ctypes. */

#include "kernels.hpp"
#include "products.hpp"
#include <omp.h>

struct OpenMP {
  i64 threads;

  template <typename Work>
  void run(i64 count, Work work) const {
#pragma omp parallel num_threads((int)threads)
    {
#pragma omp for schedule(static) nowait
      for (i64 item = 0; item < count; item++) work(item, (i64)omp_get_thread_num());
      fence();
    }
  }
};

extern "C" int symcompile_sum(i64 axes, const i64 *shape, i64 width, i64 products,
                              const float *const *x, const i64 *x_step, const i64 *depth,
                              const i64 *lines, const i64 *line, const float *const *weight,
                              i64 terms, const float *const *term, const i64 *term_step, float *y,
                              i64 streams, i64 threads) {
  return sum(OpenMP{threads}, axes, shape, width, products, x, x_step, depth, lines, line, weight,
             terms, term, term_step, y, streams);
}

extern "C" int symcompile_sums(i64 axes, const i64 *shape, const float *x, const i64 *x_step,
                               i64 width, float *over_rows, float row_scale, float *over_count,
                               float count_scale, i64 threads) {
  return sums(OpenMP{threads}, axes, shape, x, x_step, width, over_rows, row_scale, over_count,
              count_scale);
}

extern "C" int symcompile_outer(i64 axes, const i64 *shape, const float *x, const i64 *x_step,
                                i64 depth, const float *g, const i64 *g_step, i64 width,
                                float *weight, i64 threads) {
  return outer(OpenMP{threads}, axes, shape, x, x_step, depth, g, g_step, width, weight);
}

extern "C" int symcompile_back(const float *g, const float *x, i64 batch, i64 rows, i64 count,
                               i64 inner, i64 width, i64 depth, const float *transposed,
                               const float *first, const float *second, float *to_x,
                               float *to_weight, float *over_rows, float *over_count, i64 streams,
                               i64 threads) {
  return back(OpenMP{threads}, g, x, batch, rows, count, inner, width, depth, transposed, first,
              second, to_x, to_weight, over_rows, over_count, streams);
}

extern "C" int symcompile_product(i64 axes, const i64 *shape, i64 parts, float *const *x,
                                  const i64 *x_step, const i64 *x_width, const i64 *x_lines,
                                  const i64 *x_line, const float *weight, i64 transposed,
                                  i64 results, float *const *y, const i64 *y_step,
                                  const i64 *y_width, const i64 *y_lines, const i64 *y_line,
                                  i64 threads) {
  return product(OpenMP{threads}, axes, shape, Parts{parts, x, x_step, x_width, x_lines, x_line},
                 weight, transposed != 0, Parts{results, y, y_step, y_width, y_lines, y_line});
}

extern "C" int symcompile_product_back(i64 axes, const i64 *shape, i64 parts, float *const *x,
                                       const i64 *x_step, const i64 *x_width, const i64 *x_lines,
                                       const i64 *x_line, i64 others, float *const *g,
                                       const i64 *g_step, const i64 *g_width, const i64 *g_lines,
                                       const i64 *g_line, float *weight, i64 threads) {
  return product_back(OpenMP{threads}, axes, shape, Parts{parts, x, x_step, x_width, x_lines, x_line},
                      Parts{others, g, g_step, g_width, g_lines, g_line}, weight);
}
