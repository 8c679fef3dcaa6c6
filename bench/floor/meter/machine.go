package meter

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// ProcessTime is the processor time that a process of this machine has used, without its children.
func ProcessTime(pid int) (time.Duration, error) {
	p, err := readProcess(pid)
	if err != nil {
		return 0, fmt.Errorf("reading the time of process %d: %w", pid, err)
	}
	return p.own, nil
}

// BusyTime is the processor time that anything on this machine has used, what its host took away included. Less the time
// of all that is measured, it tells how much the rest of the machine disturbed a measurement.
func BusyTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(first)
	if len(fields) < 9 {
		return 0, fmt.Errorf("/proc/stat begins with %q", first)
	}
	var total int64
	// user, nice, system, irq, softirq and steal; the others are idle.
	for _, i := range []int{1, 2, 3, 6, 7, 8} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat begins with %q", first)
		}
		total += n
	}
	return time.Duration(total) * (time.Second / ticksPerSecond), nil
}
