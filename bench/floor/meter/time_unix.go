//go:build unix

package meter

import (
	"syscall"
	"time"
)

// ownTime is the processor time that this process has taken.
func ownTime() (time.Duration, error) {
	var usage syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), err
}
