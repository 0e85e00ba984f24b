"""Tests of what plugins live on."""
