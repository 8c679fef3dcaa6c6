package meter

import (
	"syscall"
	"time"
)

// ownTime is the processor time that this process has taken.
func ownTime() (time.Duration, error) {
	self, err := syscall.GetCurrentProcess()
	if err != nil {
		return 0, err
	}
	var created, exited, kernel, user syscall.Filetime
	err = syscall.GetProcessTimes(self, &created, &exited, &kernel, &user)
	// In units of 100 ns. Filetime.Nanoseconds would count from 1970, which is right for instants only.
	units := func(t syscall.Filetime) int64 { return int64(t.HighDateTime)<<32 | int64(t.LowDateTime) }
	return time.Duration(100 * (units(kernel) + units(user))), err
}
