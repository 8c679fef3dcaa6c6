//go:build race && linux

package chaos_test

// buildFlags make the program that is tested look for data races where the test does.
var buildFlags = []string{"-race"}
