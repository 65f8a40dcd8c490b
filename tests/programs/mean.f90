! The mean of all values that came: what mean.c calls.
module mean
  use, intrinsic :: iso_c_binding
  implicit none
  type, bind(C) :: mean_t
    integer(c_int64_t) :: count
    real(c_double) :: value
  end type
contains
  real(c_double) function mean_take(state, value) bind(C)
    type(mean_t), intent(inout) :: state
    real(c_double), value :: value
    state%count = state%count + 1
    state%value = state%value + (value - state%value) / real(state%count, c_double)
    mean_take = state%value
  end function
end module
