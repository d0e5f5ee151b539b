"""STANDIN"""
