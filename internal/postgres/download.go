package postgres

import (
	"context"
	"errors"
)

const downloadMajor = 18

// testedMajors are the versions that Tasker's tests run on.
var testedMajors = []int{15, 18}

// Download fetches the pinned binaries.
func Download(context.Context, func(string)) (Binaries, error) {
	return Binaries{}, errors.ErrUnsupported
}

func cachedDirs() []string { return nil }
